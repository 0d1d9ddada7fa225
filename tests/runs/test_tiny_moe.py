"""Whole runs of the tiny mixture-of-experts recipe through the `verst` command: the real parts, end to end."""

from __future__ import annotations

import json
import os
import signal
import time
from statistics import mean

import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file

from tests.runs.tiny_moe import SHORT, tiny_run
from tests.runs.verst_run import VerstRun
from verst.launcher.runs.failures import failures
from verst.launcher.watch.trace import write_trace
from verst.runtime.dashboard.columns import flat
from verst.runtime.metrics.glossary import find
from verst.runtime.run.ending import HOPELESS, read_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import without_stamp


@pytest.fixture(scope="session")
def undisturbed(model, tmp_path_factory) -> VerstRun:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    textfile = f"metrics.prometheus={{textfile: {folder}.prom}}"
    run = tiny_run(model, folder, *SHORT, "weights.check=true", textfile)
    run.finish()
    return run


def trajectory(run: VerstRun) -> list[tuple[int, float, float, float]]:
    """Each step's last record: after a crash a step may have been begun twice."""
    steps = {line["step"]: line for line in run.lines("step")}
    return [(n, steps[n]["loss"], steps[n]["grad_norm"], steps[n]["reward"]) for n in sorted(steps)]


@pytest.mark.timeout(320)
def test_a_run_trains_evaluates_checkpoints_and_exports(undisturbed):
    assert [n for n, *_ in trajectory(undisturbed)] == [5, 6, 7, 8]  # after four supervised steps
    assert [line["when"] for line in undisturbed.lines("eval")] == ["before", "after"]
    assert (undisturbed.folder / "export" / "config.json").exists()
    assert sorted(p.name for p in undisturbed.folder.glob("checkpoints/step-*"))[-1] == "step-000008"
    assert undisturbed.processes() == []


def test_every_engine_tensor_equals_the_trainers_after_every_round(undisturbed):
    rounds = undisturbed.lines("sync")
    assert len(rounds) == 5
    tensors = len(load_file(next(undisturbed.folder.glob("export/*.safetensors"))))
    assert [line["checked_tensors"] for line in rounds] == [tensors] * 5


def test_the_engines_routing_was_replayed_for_every_token(undisturbed):
    for line in undisturbed.lines("step"):
        assert line["routing_replayed"] > 0
        assert line["routing_wrong"] == 0


def test_engine_and_trainer_agree_on_log_probabilities_in_fp32(undisturbed):
    """The run samples at a temperature of 0.7."""
    assert max(line["logprob_max_diff"] for line in undisturbed.lines("step")) <= 1e-4
    assert max(line["kl_rollout_k3"] for line in undisturbed.lines("step")) < 1e-9


def test_every_step_names_its_bottleneck_from_what_the_critical_path_holds(undisturbed):
    for line in undisturbed.lines("step"):
        path = line["critical_path"]
        assert line["bottleneck"] == max(path, key=path.get)
        assert sum(path.values()) == pytest.approx(line["seconds"]["step"], abs=1e-6)
        assert {"train"} <= path.keys() <= {"rollout", "train", "weight_sync", "checkpoint", "wait"}
        assert path["wait"] < 0.2 * line["seconds"]["step"]
    assert "bottleneck" in undisturbed.output()


def test_the_traces_of_all_processes_make_one_chrome_trace(undisturbed, tmp_path):
    out = tmp_path / "trace.json"
    assert write_trace(undisturbed.folder, "6:7", out) == 0
    events = json.loads(out.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {e["args"]["step"] for e in slices if "step" in e["args"]} == {6, 7}
    by_thread: dict[str, set[str]] = {}
    for event in slices:
        by_thread.setdefault(threads[event["pid"], event["tid"]], set()).add(event["name"])
    assert {"fetch", "forward_backward", "optimizer", "transfer", "checkpoint"} <= by_thread["trainer-0"]
    assert {"train", "weight_sync", "checkpoint"} <= by_thread["controller-0 trainer"]
    assert {"generate", "reward"} <= by_thread["rollout-0 groups"]
    assert "weights" in by_thread["rollout-0 weights"]
    rounds = {line["version"] + 1: line for line in undisturbed.lines("sync")}  # by the step after the round
    for sent in (e["args"] for e in slices if e["name"] == "transfer"):
        line = rounds[sent["step"]]
        assert sent["links"]["count"] == line["links"]["count"] == 1
        assert sent["bytes"] == line["bytes"] == line["links"]["most"] > 0
    for taken in (e["args"] for e in slices if e["name"] == "weights"):
        assert 0 < taken["transfer"] < taken["stopped"]
        assert rounds[taken["step"]]["taken"]["stopped"] == pytest.approx(taken["stopped"])
    assert len([e for e in slices if e["name"].startswith("group ")]) == 2 * 4
    for train in (e for e in slices if e["name"] == "train"):
        inner = [
            e
            for e in slices
            if e["name"] == "forward_backward" and e["args"] == {"step": train["args"]["step"]}
        ]
        assert len(inner) == 1
        assert train["ts"] <= inner[0]["ts"]
        assert inner[0]["ts"] + inner[0]["dur"] <= train["ts"] + train["dur"]
    assert [e["name"] for e in events if e["ph"] == "s"] == ["step 6", "step 7"]


def test_a_few_samples_of_each_step_are_kept_token_by_token(undisturbed):
    files = sorted((undisturbed.folder / "shown").glob("step-*"))
    assert [path.name for path in files] == [f"step-{n:06d}.jsonl" for n in range(5, 9)]
    for number, path in enumerate(files, 5):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
        for sample in samples:
            assert sample["step"] == number
            tokens = len(sample["tokens"])
            assert "".join(sample["tokens"]) == sample["response"]
            for key in ("rollout_logprobs", "trainer_logprobs", "routing_differs"):
                assert len(sample[key]) == tokens
            # Both sides compute in fp32 here.
            assert sample["trainer_logprobs"] == pytest.approx(sample["rollout_logprobs"], abs=2e-4)
            assert set(sample["routing_differs"]) <= {0, 1}


def test_every_figure_is_explained_and_the_answers_of_each_evaluation_are_kept(undisturbed):
    lines = [json.loads(line) for line in (undisturbed.folder / "metrics.jsonl").read_text().splitlines()]
    keys = {(line["kind"], key) for line in lines for key, _ in flat(line)}
    assert [pair for pair in sorted(keys) if find(*pair) is None] == []
    for line in undisturbed.lines("step"):
        assert sum(line["reward_histogram"]["count"]) == 4 * 4
        assert line["groups_all_right"] + line["groups_all_wrong"] <= line["solved_groups"] <= 1
    for number in (4, 8):  # before training, after the supervised steps, and at the end
        answers = (undisturbed.folder / f"shown/eval-{number:06d}.jsonl").read_text().splitlines()
        first = json.loads(answers[0])
        assert (first["step"], first["index"]) == (number, 0)
        assert first["prompt"]
        assert isinstance(first["label"], str)
        score = mean(json.loads(line)["reward"] for line in answers)
        assert 0 <= score <= 1
    assert json.loads((undisturbed.folder / "nodes/trainer-0.json").read_text())["memory_total"] > 0


def test_a_tracker_that_the_recipe_names_has_the_last_steps_figures(undisturbed):
    text = undisturbed.folder.with_name("undisturbed.prom").read_text()
    found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    last = undisturbed.lines("step")[-1]
    assert found["verst_loss"] == last["loss"]
    assert found["verst_critical_path_train"] == last["critical_path"]["train"]
    assert undisturbed.lines("metrics_off", "events.jsonl") == []


def test_what_python_writes_to_a_log_carries_the_time(undisturbed):
    logs = undisturbed.folder / "logs/life-0"
    for name in ("trainer/0/trainer-0", "trainer/0/controller-0", "rollout/0/rollout-0"):
        lines = (logs / f"{name}.log").read_text().splitlines()
        if name.endswith("trainer-0"):  # Megatron says some while it is imported, also by its helpers
            lines = [line for line in lines if "INFO" in line]
            assert lines
        assert [line for line in lines if without_stamp(line) == line] == []


@pytest.mark.long
@pytest.mark.timeout(320)
def test_a_run_killed_and_resumed_is_bit_for_bit_the_undisturbed_one(model, undisturbed, tmp_path):
    run = tiny_run(model, tmp_path / "killed", *SHORT)
    process = run.start()
    run.wait_for(process, "step", 2)
    process.kill()
    for pid in run.processes():
        os.kill(pid, signal.SIGKILL)
    process.wait(10)
    run.finish(resume=True)
    assert trajectory(run) == trajectory(undisturbed)
    ours, theirs = (load_file(next(r.folder.glob("export/*.safetensors"))) for r in (run, undisturbed))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.long
@pytest.mark.timeout(320)
def test_a_killed_engine_comes_back_and_the_run_goes_on(model, tmp_path):
    run = tiny_run(model, tmp_path / "engine-loss", *SHORT, "algorithm.steps=6")
    process = run.start()
    run.wait_for(process, "step", 2)
    os.kill(run.pid_of("verst.runtime.rollout.worker"), signal.SIGKILL)
    assert run.wait(process, 240) == 0, run.output()
    assert [n for n, *_ in trajectory(run)] == list(range(5, 11))
    assert run.lines("engine_lost", "events.jsonl")


@pytest.mark.long
def test_a_killed_trainer_rank_ends_the_run_within_15_seconds_with_its_name(model, tmp_path):
    run = tiny_run(model, tmp_path / "rank-loss", *SHORT)
    process = run.start()
    run.wait_for(process, "stage_step", 1)
    os.kill(run.pid_of("verst.runtime.trainer.rank"), signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(process, 30) != 0
    assert time.monotonic() - killed < 15
    assert "trainer-0" in run.output()
    first, *others = failures(RunFolder(run.folder), 0)
    assert (first.process, first.echo) == ("trainer-0", False)
    assert all(other.echo for other in others), others
    assert run.processes() == []


HOOKS = {
    "rollout.reward": ("raises", "reward function", "raised ZeroDivisionError: division by zero"),
    "rollout.filter": ("returns_nothing", "group filter", "returned None, neither True nor False"),
    "rollout.generate": ("leaves", "generate function", "called sys.exit(3)"),
    "algorithm.advantage": ("one_short", "advantage function", "returned 1 value for 2 rewards"),
    "algorithm.loss": ("scalar_loss", "loss function", "returned a loss of shape [] for"),
}


@pytest.mark.long
@pytest.mark.parametrize("key", HOOKS)
def test_a_broken_hook_ends_the_run_at_once_and_its_reason_is_the_headline(model, tmp_path, key):
    name, what, message = HOOKS[key]
    run = tiny_run(
        model, tmp_path / name, *SHORT, f"{key}=tests.runs.rewards:{name}", "algorithm.samples_per_prompt=2"
    )
    process = run.start()
    assert run.wait(process, 240) == 1
    (headline,) = [line for line in run.printed_lines() if line.startswith("the run ended early: ")]
    assert f"{what} 'tests.runs.rewards:{name}', " in headline
    assert message in headline
    end = read_end(RunFolder(run.folder), 0)
    assert end is not None
    assert (end.code, headline) == (HOPELESS, f"the run ended early: {end.reason}")
    assert run.lines("process_restarted", "events.jsonl") == []
    assert run.processes() == []


def test_the_logs_and_events_of_a_healthy_run_hold_nothing_that_looks_like_a_fault(undisturbed):
    for log in undisturbed.folder.glob("logs/life-0/*/*/*.log"):
        text = log.read_text(errors="replace")
        assert "Traceback (most recent call last)" not in text, log
        assert "--- Logging error ---" not in text, log
    kinds = {
        json.loads(line)["kind"] for line in (undisturbed.folder / "events.jsonl").read_text().splitlines()
    }
    assert not kinds & {"waiting_for_engines", "engines_back", "engine_lost", "process_failed"}
