"""An engine whose ranks are spread over two nodes: a whole run, and what happens when a part of it dies."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.runs.tiny_moe import SHORT, tiny_run

TWO_NODES = (*SHORT, "rollout.nodes_per_engine=2", "rollout.sglang.tp-size=2", "algorithm.steps=3")


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_run_whose_engine_is_on_two_nodes_and_loses_one_of_them(model: Path, tmp_path: Path) -> None:
    run = tiny_run(model, tmp_path / "run", *TWO_NODES, "weights.check=true")
    process = run.start()
    run.wait_for(process, "step", 1)
    part = run.pid_of("verst.runtime.rollout.engine.part")
    os.kill(part, signal.SIGKILL)
    assert run.wait(process, 300) == 0, run.output()
    assert sorted({line["step"] for line in run.lines("step")}) == [5, 6, 7]
    assert max(line["logprob_max_diff"] for line in run.lines("step")) <= 1e-4
    assert {line["checked_tensors"] for line in run.lines("sync") if line["engines"]} == {135}
    assert run.lines("engine_lost", "events.jsonl")
    assert run.processes() == []
