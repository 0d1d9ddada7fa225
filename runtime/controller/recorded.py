"""The steps of another run's recording, to train on in place of generated groups (`record.source`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from verst.runtime.messages.sample import GroupMeta
from verst.runtime.run.folder import RunFolder, write_atomically
from verst.runtime.store.recording import recorded_steps

_FILE = "recording.json"


def write_note(folder: RunFolder, same_weights: bool) -> None:
    """Notes whether the run makes the weights of its recording again, version by version."""
    write_atomically(folder.root / _FILE, json.dumps({"same_weights": same_weights}).encode() + b"\n")


def read_note(folder: RunFolder) -> bool:
    """What `write_note` wrote."""
    return bool(json.loads((folder.root / _FILE).read_text())["same_weights"])


def steps_to_train(
    source: Path, metas: Sequence[GroupMeta], same_weights: bool
) -> dict[int, tuple[GroupMeta, ...]]:
    """The groups of each step of the recording at `source`, a run folder, by the step's number.

    Without `same_weights` the tokens' versions are of weights that this run does not have, so they are marked:
    the engine's log-probabilities are then the old policy's. Raises ValueError for a group that is missing.
    """
    known = {meta.id: meta for meta in metas}
    steps: dict[int, tuple[GroupMeta, ...]] = {}
    for step, groups in recorded_steps(RunFolder(source).samples).items():
        if missing := [id for id in groups if id not in known]:
            raise ValueError(
                f"record.source: {source} lacks the groups {missing} of step {step}: its journals in samples/ are not "
                "whole"
            )
        steps[step] = tuple(
            msgspec.structs.replace(known[id], common_version=common if same_weights else -1)
            for id, common in groups.items()
        )
    return steps
