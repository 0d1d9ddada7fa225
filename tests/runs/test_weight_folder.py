"""A whole run whose weights cross through a folder as deltas; an engine comes late and gets what is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.runs.tiny_moe import SHORT, tiny_run
from verst.sync.files.tensor_checksum import tensor_bytes
from verst.sync.versions.folder import read_index, versions
from verst.sync.versions.reader import open_version

# In bfloat16 and at a small rate, as in earnest: most weights stay what they are in a step.
DELTAS = (
    *SHORT,
    "model.dtype=bfloat16",
    "trainer.megatron.lr=1e-6",
    "algorithm.stages.0.lr=1e-6",
    "algorithm.steps=8",
    "algorithm.routing_replay=off",
    "weights.transport=delta",
    "weights.full_every=5",
    "weights.check=true",
)


@pytest.mark.long
@pytest.mark.timeout(800)
def test_a_run_on_deltas_whose_engine_dies_finds_damage_and_joins_again(model: Path, tmp_path: Path) -> None:
    run = tiny_run(model, tmp_path / "run", *DELTAS)
    process = run.start()
    run.wait_for(process, "step", 3)
    os.kill(run.pid_of("verst.runtime.rollout.worker"), signal.SIGKILL)
    # What an engine that joins starts from is damaged: it is left out, and joins when that is written anew.
    run.wait_for(process, "engine_lost", 1, file="events.jsonl")
    whole = next(run.folder.glob("weights/life-0/v*/trainer-*.safetensors"))
    with whole.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(50))
    assert run.wait(process, 700) == 0, run.output()
    left_out = [line["message"] for line in run.lines("engine_left_out", "events.jsonl")]
    assert sum(str(whole) in message for message in left_out) == 1, left_out
    assert sorted({line["step"] for line in run.lines("step")}) == list(range(5, 13))
    assert run.lines("engine_lost", "events.jsonl")
    exported = load_file(next(run.folder.glob("export/*.safetensors")))
    rounds = [line for line in run.lines("sync") if line["engines"]]
    assert {line["checked_tensors"] for line in rounds} == {len(exported)}
    size = sum(tensor.nbytes for tensor in exported.values())

    written = [line["bytes"] for line in rounds]
    assert written[0] > size
    assert sum(0 < bytes < 0.5 * size for bytes in written) >= 4, written
    read = [line["taken"]["fetch_bytes"] for line in rounds]
    assert sum(bytes < 0.5 * size for bytes in read) >= 4, read
    assert sum(bytes >= size for bytes in read) >= 2, "at first, and when it joined again"
    for line in rounds:
        assert line["taken"]["stopped"] > 0
        phases = {name for name, seconds in line["seconds"].items() if seconds > 0}
        assert {"load", "check"} <= phases
        assert ("write" in phases) == (line["bytes"] > 0), (
            "a version that is there already is not written again"
        )

    root = run.folder / "weights/life-0.1"
    with open_version(root) as reader:
        assert {name: tensor_bytes(reader.tensor(name)) for name in exported} == {
            name: tensor_bytes(tensor) for name, tensor in exported.items()
        }
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    there = versions(root)
    assert sum(read_index(root, version).base is None for version in there) <= 2, there
    assert run.processes() == []
