"""Whole runs of the tiny mixture-of-experts recipe through the `verst` command: the real parts, end to end."""

from __future__ import annotations

import os
import signal
import time

import pytest
from safetensors.torch import load_file

from tests.runs.tiny_moe import SHORT, tiny_run
from tests.runs.verst_run import VerstRun


@pytest.fixture(scope="session")
def undisturbed(model, tmp_path_factory) -> VerstRun:
    run = tiny_run(model, tmp_path_factory.mktemp("runs") / "undisturbed", *SHORT, "weights.check=true")
    run.finish()
    return run


def trajectory(run: VerstRun) -> list[tuple[int, float, float, float]]:
    """Each step's last record: after a crash a step may have been begun twice."""
    steps = {line["step"]: line for line in run.lines("step")}
    return [(n, steps[n]["loss"], steps[n]["grad_norm"], steps[n]["reward"]) for n in sorted(steps)]


@pytest.mark.timeout(320)
def test_a_run_trains_evaluates_checkpoints_and_exports(undisturbed):
    assert [n for n, *_ in trajectory(undisturbed)] == [0, 1, 2, 3]
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
    assert max(line["logprob_max_diff"] for line in undisturbed.lines("step")) <= 1e-4


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
    assert [n for n, *_ in trajectory(run)] == list(range(6))
    assert run.lines("engine_lost", "events.jsonl")


def test_a_killed_trainer_rank_ends_the_run_within_15_seconds_with_its_name(model, tmp_path):
    run = tiny_run(model, tmp_path / "rank-loss", *SHORT)
    process = run.start()
    run.wait_for(process, "warm_start", 1)
    os.kill(run.pid_of("verst.runtime.trainer.rank"), signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(process, 30) != 0
    assert time.monotonic() - killed < 15
    assert "trainer-0" in run.output()
    assert run.processes() == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("reward", "message"),
    [("raises", "ZeroDivisionError"), ("not_a_number", "nan")],
)
def test_a_broken_reward_ends_the_run_naming_it(model, tmp_path, reward, message):
    run = tiny_run(model, tmp_path / reward, *SHORT, f"rollout.reward=tests.runs.rewards:{reward}")
    process = run.start()
    assert run.wait(process, 200) != 0
    output = run.output()
    assert f"tests.runs.rewards:{reward}" in output
    assert message in output
    assert run.processes() == []
