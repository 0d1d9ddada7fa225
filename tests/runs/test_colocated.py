"""Whole runs of the tiny mixture of experts in the colocated layout: trainer and engine take turns."""

from __future__ import annotations

import os
import signal

import pytest

from tests.runs.tiny_moe import SHORT, tiny_run
from tests.runs.verst_run import VerstRun

COLOCATED = (*SHORT, "placement.layout=colocated", "weights.check=true")


@pytest.fixture(scope="module")
def colocated(model, tmp_path_factory) -> VerstRun:
    run = tiny_run(model, tmp_path_factory.mktemp("runs") / "colocated", *COLOCATED, "algorithm.steps=2")
    run.finish(timeout=500)
    return run


def turns(run: VerstRun) -> list[str]:
    return [line["turn"] for line in run.lines("turn")]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_trainer_and_engine_take_turns_on_one_node(colocated):
    assert [line["step"] for line in colocated.lines("step")] == [5, 6]
    assert turns(colocated) == ["engines", "both", "engines", *["trainer", "both", "engines"] * 2, "trainer"]
    assert [line["when"] for line in colocated.lines("eval")] == ["before", "after"]
    assert not (colocated.folder / "logs/life-0/rollout").exists()
    assert (colocated.folder / "logs/life-0/trainer/0/sglang-0.log").exists()
    assert (colocated.folder / "export/config.json").exists()
    assert colocated.processes() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_what_the_trainer_holds_in_each_turn_is_what_the_turn_says(colocated):
    weights = {line["trainer_held"] for line in colocated.lines("turn") if line["turn"] == "both"}
    whole = {line["trainer_held"] for line in colocated.lines("turn") if line["turn"] == "trainer"}
    assert {line["trainer_held"] for line in colocated.lines("turn") if line["turn"] == "engines"} == {0}
    # fp32 weights; gradients and two moments of the same size
    assert len(weights) == len(whole) == 1
    assert whole.pop() == pytest.approx(4 * weights.pop(), rel=0.01)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_after_each_turn_the_engine_has_every_weight_of_the_trainer(colocated):
    rounds = colocated.lines("sync")
    assert len(rounds) == 3
    assert len({line["checked_tensors"] for line in rounds}) == 1
    assert rounds[0]["checked_tensors"] > 0
    for line in colocated.lines("step"):
        assert line["logprob_max_diff"] <= 1e-4
        assert line["critical_path"]["turn"] > 0


@pytest.mark.long
@pytest.mark.timeout(1300)
def test_asked_to_stop_it_takes_the_gpus_from_the_working_engine_saves_and_goes_on_through_an_engines_death(
    model, tmp_path
):
    slow = "rollout.reward=tests.runs.rewards:slow"
    run = tiny_run(model, tmp_path / "stopped", *COLOCATED, "checkpoint.interval=100", slow)
    process = run.start()
    run.wait_for(process, "step", 1, timeout=400)
    made = len(run.lines("rollout_progress"))
    run.wait_for(process, "rollout_progress", made + 1)  # the next step's groups are under way
    os.kill(run.pid_of("verst.runtime.controller"), signal.SIGUSR2)
    assert run.wait(process, 120) != 0
    (stopped,) = {line["version"] for line in run.lines("checkpoint")}
    assert turns(run)[-1] == "trainer"
    steps = len(run.lines("step"))
    assert stopped == 4 + steps < 8

    process = run.start(resume=True)
    run.wait_for(process, "step", steps + 1, timeout=400)
    os.kill(run.pid_of("verst.runtime.rollout.worker"), signal.SIGKILL)
    assert run.wait(process, 400) == 0, run.output()
    assert [line["step"] for line in run.lines("step")] == [5, 6, 7, 8]
    assert run.lines("engine_lost", "events.jsonl")
    assert max(line["logprob_max_diff"] for line in run.lines("step")) <= 1e-4
    assert run.processes() == []
