"""What `verst ls`, `status`, `samples`, `compare`, `rm`, `check-reward` and `init` say of runs and recipes."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml

from tests.launcher.recipes_for_tests import LLAMA, write_recipe
from verst.launcher.check.hooks.reward import check_reward
from verst.launcher.check.placement import placement_faults
from verst.launcher.commands.running import _resume
from verst.launcher.plan.machine import Machine
from verst.launcher.plan.new_recipe import choose_layout
from verst.launcher.plan.new_recipe import write_recipe as write_new
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.open import only_launcher
from verst.launcher.runs.remove import remove_runs
from verst.launcher.watch.compare import compare_runs
from verst.launcher.watch.list_runs import list_runs
from verst.launcher.watch.samples import print_samples
from verst.launcher.watch.status import show_status
from verst.runtime.run.ending import STOPPED, RunEnd, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    write_recipe(tmp_path)


def make_run(name: str, *overrides: str, code: int | None = 0, steps: int = 2) -> RunFolder:
    folder = RunFolder(Path("runs") / name)
    folder.create()
    load_recipe(Path("recipe.yaml"), [f"name={name}", "data.eval={path: train.jsonl}", *overrides]).write(
        folder.recipe
    )
    folder.start_generation()
    folder.metric(kind="eval", set="held_out", step=0, when="before", reward=0.25, samples=8)
    for step in range(1, steps + 1):
        folder.metric(
            kind="step", step=step, reward=0.4 + step / 10, seconds={"step": 2.0}, tokens_per_s=100.0
        )
    if code is not None:
        write_end(folder, RunEnd(code, "the reason", 0))
    return folder


def told(capsys) -> object:
    return json.loads(capsys.readouterr().out)


def test_ls_tells_each_runs_state_and_progress(capsys):
    make_run("good", steps=3)
    make_run("bad", code=1)
    make_run("stopped", code=STOPPED)
    make_run("killed", code=None)
    runs = make_run("running", code=None)
    (Path("runs") / "no run").mkdir()
    with only_launcher(runs):
        assert list_runs(Path("runs"), as_json=True) == 0
        found = {run["name"]: run for run in told(capsys)}
        list_runs(Path("runs"), as_json=False)
        table = capsys.readouterr().out
    assert {name: run["state"] for name, run in found.items()} == {
        "good": "finished", "bad": "failed", "stopped": "stopped", "killed": "not running", "running": "running",
    }  # fmt: skip
    good, running = found["good"], found["running"]
    assert (good["steps"], good["steps_planned"], good["reward"], good["held_out"]) == (3, 3, 0.7, 0.25)
    assert (good["seconds_left"], running["seconds_left"]) == (None, 2.0)
    assert found["bad"]["reason"] == "the reason"
    lines = {line.split()[0]: line.split() for line in table.splitlines()}
    assert lines["running"][1:5] == ["running", "0", "2/3", "0.600"]
    assert "no" not in lines


def test_an_evaluation_is_not_resumed_as_if_it_were_a_run():
    folder = make_run("eval-model", code=1)
    process = Process(role="controller", index=0, argv=[], env={}, on_exit="ends_run")
    Plan(name="eval-model", groups={"controller": [Node(processes=[process])]}).write(folder.plan)
    with pytest.raises(
        UserError, match="is an evaluation: it is not resumed, `verst eval` makes another one"
    ):
        _resume(folder.root, [])


def test_ls_of_no_folder_or_no_run_says_so(capsys):
    with pytest.raises(UserError, match="there is no folder runs"):
        list_runs(Path("runs"), as_json=False)
    Path("runs").mkdir()
    assert list_runs(Path("runs"), as_json=False) == 0
    assert capsys.readouterr().out == "there are no runs in runs\n"


@pytest.mark.parametrize(
    ("code", "state", "exit_code"),
    [(0, "finished", 0), (1, "failed", 1), (STOPPED, "stopped", 4), (None, "not running", 4)],
)
def test_status_tells_programs_how_the_run_is(capsys, code, state, exit_code):
    folder = make_run("one", code=code)
    assert show_status(Path("one"), as_json=True, exit_code=True) == exit_code
    found = told(capsys)
    assert (found["state"], found["folder"], found["life"]) == (state, str(folder.root), 0)
    assert show_status(folder.root, as_json=False, exit_code=True) == exit_code
    assert show_status(folder.root) == 0
    assert f"{folder.root}: " in capsys.readouterr().out


def test_a_running_run_has_an_exit_code_of_its_own(capsys):
    folder = make_run("one", code=None)
    with only_launcher(folder):
        assert show_status(folder.root, as_json=True, exit_code=True) == 3
    assert told(capsys)["state"] == "running"


def test_a_failed_run_says_which_process_failed_first(capsys):
    folder = make_run("one", code=None)
    folder.event(
        "process_failed", process="trainer-0", reason="trainer-0 failed: exit code 1", lines=["boom"]
    )
    write_end(folder, RunEnd(1, "trainer-0 failed: exit code 1", 0))
    show_status(folder.root, as_json=True)
    found = told(capsys)
    assert (found["failed_first"], found["last_lines"]) == ("trainer-0 failed: exit code 1", ["boom"])


def test_samples_are_those_of_the_step_as_people_count(capsys):
    folder = make_run("one")
    with pytest.raises(UserError, match="has kept no samples yet"):
        print_samples(folder.root, None, 8, False)
    folder.shown.mkdir()
    for step in (1, 3):
        lines = [
            {
                "step": step,
                "group": 5,
                "index": n,
                "prompt": "1 + 1 =",
                "response": f"[{n}]",
                "reward": n,
                "advantage": 0.5,
            }
            for n in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder.shown / f"step-{step:06d}.jsonl").write_text(text + '{"torn')
    assert print_samples(folder.root, None, 2, False) == 0
    out = capsys.readouterr().out
    assert "step 3, group 5, answer 0: reward 0, advantage +0.500\n1 + 1 =\n[0]\n" in out
    assert "answer 2" not in out
    print_samples(folder.root, 1, 8, True)
    assert [sample["response"] for sample in told(capsys)] == ["[0]", "[1]", "[2]"]
    with pytest.raises(UserError, match="no samples were kept of step 2; kept are: 1, 3"):
        print_samples(folder.root, 2, 8, False)


def test_compare_tells_what_differs_and_what_came_of_it(capsys):
    make_run("a", steps=3)
    make_run("b", "trainer.megatron.lr=1e-5", "algorithm.kl_coef=0.1")
    assert compare_runs([Path("a"), Path("b")], as_json=True) == 0
    found = told(capsys)
    assert found["recipes_differ_in"] == {
        "algorithm.kl_coef": [0.0, 0.1],
        "trainer.megatron.lr": [1e-4, 1e-5],
    }
    first, second = found["figures"]
    assert (first["steps"], second["steps"]) == (3, 2)
    assert first["reward, last 10 steps"] == pytest.approx(0.6)
    assert first["held_out/reward before"] == 0.25
    compare_runs([Path("a"), Path("b")], as_json=False)
    assert "trainer.megatron.lr" in capsys.readouterr().out
    compare_runs([Path("a"), Path("a")], as_json=False)
    assert "the recipes are the same" in capsys.readouterr().out


def test_compare_counts_the_steps_of_all_stages(capsys):
    folder = make_run("sft", steps=0)
    for step in (1, 2):
        folder.metric(kind="stage_step", step=step, stage="sft", loss=3.0 - step, seconds={"step": 4.0})
        folder.metric(kind="stage_eval", step=step, stage="sft", rows=5, sft_loss=2.5)
    made = make_run("made", steps=0)
    made.metric(kind="rollout", step=1, reward=0.5, rollout_tokens_per_s=90.0, seconds={"rollout": 1.0})
    compare_runs([Path("sft"), Path("made")], as_json=True)
    sft, made = told(capsys)["figures"]
    assert (sft["steps"], sft["sft loss, last 10 steps"], sft["sft held-out loss last"]) == (2, 1.5, 2.5)
    assert sft["seconds per step"] == 4.0
    assert (made["steps"], made["reward, last 10 steps"]) == (1, 0.5)


def test_rm_removes_only_runs_that_are_over(capsys):
    one, two = make_run("one"), make_run("two", code=None)
    with pytest.raises(UserError, match="is running"):
        remove_runs(
            [one.root, two.root], True, lambda folder: "is running" if folder.root == two.root else None
        )
    with pytest.raises(UserError, match="is not a run folder"):
        remove_runs([Path("model")], True, lambda folder: None)
    with pytest.raises(
        UserError, match=r"this would remove .*one \(0.0 MiB\): `--yes` does it without a question"
    ):
        remove_runs([one.root], False, lambda folder: None)
    assert one.root.is_dir()
    assert two.root.is_dir()
    assert remove_runs([Path("one")], True, lambda folder: None) == 0
    assert capsys.readouterr().out == f"removed {one.root}\n"
    assert not one.root.exists()
    assert two.root.is_dir()


REWARDS = """\
import os, sys, time
print("imported")
def exact(answer):
    print("called")
    return float(answer.text == answer.label)
async def later(answer):
    return answer.metadata["n"] + (answer.text == answer.label)
def raises(answer):
    raise ValueError("no " + answer.label)
def infinite(answer):
    return float("inf")
def dies(answer):
    os._exit(3)
def slow(answer):
    time.sleep(2)
    return 1.0
def eats(answer):
    return len(bytearray(2**31))
def rendered(answer):
    assert answer.messages[-1] == {"role": "assistant", "content": answer.text}
    assert answer.prompt == answer.messages[0]["content"] + "<|end|>", answer.prompt
    assert len(answer.ids) == len(answer.text), answer.ids
    return 1.0
def prints(answer):
    print("not JSON")
    return 1.0
"""


@pytest.fixture
def rewards() -> None:
    shutil.rmtree("model")  # without a tokenizer, whose import takes seconds
    Path("rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{n} + 1 =", "label": str(n + 1), "n": n} for n in range(5)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("rewards")
def test_a_reward_is_tried_on_rows_without_an_engine(capfd):
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:exact"], 2, ["9"], True) == 0
    calls = told(capfd)
    assert [(c["row"].rpartition(":")[2], c["answer"], c["reward"]) for c in calls] == [
        ("1", "the label", 1.0), ("1", "nothing", 0.0), ("1", "--answer", 0.0),
        ("2", "the label", 1.0), ("2", "nothing", 0.0), ("2", "--answer", 0.0),
    ]  # fmt: skip
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:later"], 2, [], False) == 0
    assert "mean for the label: 1.5, mean for nothing: 0.5" in capfd.readouterr().out
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:prints"], 1, [], True) == 0
    said = capfd.readouterr()
    assert len(json.loads(said.out)) == 2
    assert "not JSON" in said.err


def test_a_reward_gets_prompt_tokens_and_messages_as_in_a_run(capfd):
    Path("rewards.py").write_text(REWARDS)
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:rendered"], 1, ["12 + 3"], True) == 0
    assert len(told(capfd)) == 3


@pytest.mark.usefixtures("rewards")
def test_a_reward_that_fails_is_told_with_its_row(capfd):
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:raises"], 1, [], False) == 1
    said = capfd.readouterr()
    assert "raised ValueError: no 1" in said.out
    assert 'raise ValueError("no " + answer.label)' in said.err, "the user's frames are there"
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:infinite"], 1, [], False) == 1
    assert "returned inf, not a finite number" in capfd.readouterr().out
    limit = "rollout.reward_timeout_s=0.1"
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:slow", limit], 1, [], True) == 1
    faults = {c["fault"] for c in told(capfd)}
    assert len(faults) == 1
    assert faults.pop().startswith("no value after 0.1 s")
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:dies"], 1, [], True) == 1
    assert {c["fault"] for c in told(capfd)} == {"its process ended with exit code 3"}
    memory = "rollout.reward_memory_gib=0.5"
    assert check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:eats", memory], 1, [], True) == 1
    assert all("MemoryError" in c["fault"] for c in told(capfd))
    Path("broken.py").write_text("import no_such_module\ndef reward(a): return 0.0\n")
    with pytest.raises(UserError, match="no_such_module"):
        check_reward(Path("recipe.yaml"), ["rollout.reward=broken:reward"], 1, [], False)
    with pytest.raises(UserError, match=r"rollout\.reward: is 'rewards:exakt'"):
        check_reward(Path("recipe.yaml"), ["rollout.reward=rewards:exakt"], 1, [], False)


@pytest.mark.parametrize("gpus", [0, 1, 2, 8, 16])
def test_a_new_recipe_fits_its_machine_and_its_data(gpus, capsys, monkeypatch):
    monkeypatch.setattr("verst.launcher.check.placement.find_spec", lambda name: name)
    Path("gsm.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    assert write_new("model", Path("new.yaml"), gpus, 80.0, Path("gsm.jsonl"), "my_hooks:reward") == 0
    recipe = load_recipe(Path("new.yaml"))
    assert (recipe.name, recipe.model.path, recipe.rollout.reward) == ("new", "model", "my_hooks:reward")
    assert (recipe.data.train.prompt_key, recipe.data.train.label_key) == ("question", "answer")
    machine = Machine(cores=64, gpus=tuple(map(str, range(gpus))))
    assert list(placement_faults(recipe, machine)) == []
    if gpus:
        assert recipe.trainer.nodes * recipe.trainer.ranks_per_node == gpus
    with pytest.raises(UserError, match="already exists"):
        write_new("model", Path("new.yaml"), gpus, 80.0, None, "my_hooks:reward")


def test_a_layout_is_as_split_as_the_memory_asks():
    billion, gpu = 10**9, 80 * 2**30
    heads = {"num_key_value_heads": 8, "num_experts": 128}
    small = choose_layout(8, gpu, (billion, 0), heads)
    assert (small.tp, small.pp, small.engine_tp, small.fits) == (1, 1, 1, True)
    large = choose_layout(8, gpu, (20 * billion, 0), heads)
    assert (large.tp, large.engine_tp, large.fits) == (8, 2, True)
    assert not choose_layout(8, gpu, (400 * billion, 0), heads).fits
    sparse = choose_layout(16, gpu, (2 * billion, 28 * billion), heads)
    assert (sparse.ep, sparse.fits) == (8, True)


def test_a_new_recipe_of_experts_replays_their_routing():
    Path("model/config.json").write_text(json.dumps({**LLAMA, "num_experts": 8}))
    write_new("model", Path("new.yaml"), 8, 80.0, None, "my_hooks:reward")
    assert yaml.safe_load(Path("new.yaml").read_text())["algorithm"]["routing_replay"] == "rollout"
    assert os.stat("new.yaml").st_mode & 0o777 == 0o644
    assert time.time() - os.stat("new.yaml").st_mtime < 60
