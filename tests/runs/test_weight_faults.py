"""Faults in the middle of weight rounds: they end in time, the others go on, what failed comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.runs.tiny_moe import SHORT, tiny_run
from tests.runs.verst_run import VerstRun

TWO_OF_EACH = (
    *SHORT,
    "trainer.ranks_per_node=2",
    "trainer.megatron.expert-model-parallel-size=2",
    "rollout.engines=2",
    "rollout.min_engines=1",
    "weights.timeout_s=8",
    "algorithm.steps=40",
    "checkpoint.interval=100",
)


def scheduler(run: VerstRun) -> int:
    """SGLang's process that loads the weights, of one of the engines."""
    worker = psutil.Process(run.pid_of("verst.runtime.rollout.worker"))
    return next(p.pid for p in worker.children(recursive=True) if "scheduler" in " ".join(p.cmdline()))


def an_engine_stands_still(run: VerstRun, process: subprocess.Popen[str]) -> None:
    """Stops one between what it generates for a step and the round after it, while the trainer is held.

    Stopped while it generates, it would hold up its requests, until `rollout.request_timeout_s`.
    """
    engine, trainer = scheduler(run), run.pid_of("verst.runtime.trainer.rank")
    run.wait_for(process, "sync", len(run.lines("sync")) + 1, poll_s=0.01)
    os.kill(trainer, signal.SIGSTOP)
    try:
        step = run.lines("step")[-1]["step"] + 1
        deadline = time.monotonic() + 60
        while not any((p["step"], p["done"]) == (step, p["of"]) for p in run.lines("rollout_progress")):
            assert time.monotonic() < deadline, "the engines did not generate what the step wants"
            time.sleep(0.05)
        os.kill(engine, signal.SIGSTOP)
    finally:
        os.kill(trainer, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_engine_that_stands_still_in_a_round_is_left_out_and_rejoins(model: Path, tmp_path: Path) -> None:
    # Enough for an engine to start again, which on two cores takes as long as fifty steps.
    run = tiny_run(model, tmp_path / "run", *TWO_OF_EACH, "algorithm.steps=120")
    process = run.start()
    run.wait_for(process, "step", 2)
    an_engine_stands_still(run, process)
    assert run.wait(process, 500) == 0, run.output()
    left_out = run.lines("engine_left_out", "events.jsonl")
    assert len(left_out) == 1, left_out
    rounds = run.lines("sync")
    alone = [r for r in rounds if len(r["engines"]) == 1]
    assert alone, "the other engine got its weights meanwhile"
    assert max(sum(r["seconds"].values()) for r in rounds) < 8 + 5
    after = [r["version"] for r in rounds if len(r["engines"]) == 2 and r["version"] > alone[0]["version"]]
    late = [r for r in rounds if r["version"] > alone[0]["version"]]
    assert after or len({e for r in late for e in r["engines"]}) == 2, "it came back"
    assert sorted({line["step"] for line in run.lines("step")}) == list(range(5, 125))
    assert run.processes() == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_trainer_rank_killed_in_a_round_ends_the_run_which_then_goes_on(
    model: Path, tmp_path: Path
) -> None:
    run = tiny_run(
        model,
        tmp_path / "run",
        *TWO_OF_EACH,
        "weights.check=true",
        "weights.timeout_s=100",
        "algorithm.steps=6",
        "checkpoint.interval=1",
    )
    process = run.start()
    run.wait_for(process, "step", 2, timeout=400)
    an_engine_stands_still(run, process)  # so that the round which follows is not over when the rank dies
    time.sleep(2)
    assert run.lines("sync")[-1]["version"] < run.lines("step")[-1]["version"], "a round is under way"
    os.kill(run.pid_of("verst.runtime.trainer.rank"), signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait(process, 60) != 0
    assert time.monotonic() - killed < 30, "nobody waited for the round's deadline"
    assert "trainer-" in run.output()
    assert run.processes() == []
    run.finish(resume=True, timeout=500)
    assert sorted({line["step"] for line in run.lines("step")}) == list(range(5, 11))
    checked = {line["checked_tensors"] / len(line["engines"]) for line in run.lines("sync")}
    assert len(checked) == 1, "of each engine all, in every round"
