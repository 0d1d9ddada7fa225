"""An engine that stops in the middle of weight rounds: the round ends in time, the others go on, it comes back."""

from __future__ import annotations

import os
import signal
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


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_engine_that_stands_still_in_a_round_is_left_out_and_rejoins(model: Path, tmp_path: Path) -> None:
    run = tiny_run(model, tmp_path / "run", *TWO_OF_EACH)
    process = run.start()
    run.wait_for(process, "step", 2)
    os.kill(scheduler(run), signal.SIGSTOP)
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
    assert sorted({line["step"] for line in run.lines("step")}) == list(range(40))
    assert run.processes() == []
