"""A whole run whose weights cross through a folder as deltas; an engine comes late and gets what is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs.tiny_moe import SHORT, tiny_run
from verst.sync.disk import read_index, versions
from verst.sync.disk_reader import open_version
from verst.sync.tensor_checksum import tensor_bytes

# In bfloat16 and at a small rate, as in earnest: most weights stay what they are in a step.
DELTAS = (
    *SHORT,
    "model.dtype=bfloat16",
    "trainer.megatron.lr=1e-6",
    "algorithm.warm_start.lr=1e-6",
    "algorithm.steps=8",
    "algorithm.routing_replay=off",
    "weights.transport=delta",
    "weights.full_every=5",
    "weights.check=true",
)


@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_run_on_deltas_whose_engine_dies_and_joins_again(model: Path, tmp_path: Path) -> None:
    run = tiny_run(model, tmp_path / "run", *DELTAS)
    process = run.start()
    run.wait_for(process, "step", 3)
    os.kill(run.pid_of("verst.runtime.rollout.worker"), signal.SIGKILL)
    assert run.wait(process, 360) == 0, run.output()
    assert sorted({line["step"] for line in run.lines("step")}) == list(range(8))
    assert run.lines("engine_lost", "events.jsonl")
    exported = load_file(next(run.folder.glob("export/*.safetensors")))
    rounds = [line for line in run.lines("sync") if line["engines"]]
    assert {line["checked_tensors"] for line in rounds} == {len(exported)}
    size = sum(tensor.nbytes for tensor in exported.values())

    written = [line["bytes"] for line in rounds]
    assert written[0] > size
    assert sum(0 < bytes < 0.5 * size for bytes in written) >= 5, written
    read = [line["fetch_bytes"]["0"] for line in rounds]
    assert sum(bytes < 0.5 * size for bytes in read) >= 5, read
    assert sum(bytes >= size for bytes in read) >= 2, "at first, and when it joined again"
    for line in rounds:
        assert line["stopped_s"]["0"] > 0
        phases = {name for name, seconds in line["seconds"].items() if seconds > 0}
        assert {"load", "check"} <= phases
        # When the engine joins again, the version may be there already.
        assert ("write" in phases) == (line["bytes"] > 0)

    root = run.folder / "weights/attempt-0"
    with open_version(root) as reader:
        assert {name: tensor_bytes(reader.tensor(name)) for name in exported} == {
            name: tensor_bytes(tensor) for name, tensor in exported.items()
        }
    there = versions(root)
    assert sum(read_index(root, version).base is None for version in there) <= 2, there
    assert run.processes() == []
