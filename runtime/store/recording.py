"""What a run with `record.keep` leaves in `samples/`: every group, and which of them each step trained on.

```
samples/steps.jsonl        {"step": 12, "groups": [40, 41, …], "common_versions": [null, 9, …]}: a line before each
                           step, with `GroupMeta.common_version`. A line takes the place of those before it for this
                           step and later ones: the run was resumed from before them
samples/shard-0/*.journal  groups that no complete checkpoint covers, and the last ones
samples/shard-0/kept/*.journal   the rest
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.run.folder import append_line
from verst.runtime.run.line_reader import LineReader
from verst.runtime.store.journal import KEPT, Place, first_of, groups_of, read_at

_STEPS = "steps.jsonl"


class StepList:
    """Notes which groups each step trains on. `samples` is the run's folder of that name."""

    def __init__(self, samples: Path) -> None:
        self._file = samples / _STEPS

    def begins(self, step: int, groups: Sequence[GroupMeta]) -> None:
        """A step begins to train on these groups, in this order."""
        common = [group.common_version for group in groups]
        append_line(self._file, {"step": step, "groups": [g.id for g in groups], "common_versions": common})


def recorded_steps(samples: Path) -> dict[int, dict[int, int | None]]:
    """The groups of each step of a recording, in order, with their common versions, by the step's number.

    Empty if there is no recording.
    """
    steps: dict[int, dict[int, int | None]] = {}
    for line in LineReader(samples / _STEPS).records():
        step = int(line["step"])
        while steps and next(reversed(steps)) >= step:  # of weights that the run no longer had
            steps.popitem()
        steps[step] = dict(zip(line["groups"], line["common_versions"], strict=True))
    return steps


def missing_steps(steps: Mapping[int, object], first: int, last: int) -> str | None:
    """Why a recording with these steps cannot serve those from `first` to `last`; None if it can."""
    if not steps:
        return "it kept no groups: it ran without `record.keep: true`, or ended before its first step"
    missing = [step for step in range(first, last + 1) if step not in steps]
    if not missing:
        return None
    return (
        f"it has the steps {min(steps)} to {max(steps)}, and this run needs {first} to {last}; step {missing[0]} is "
        "missing"
    )


def shard_folders(samples: Path) -> list[Path]:
    """The folders of a recording's shards, by number."""
    found = [path for path in samples.glob("shard-*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def first_group(samples: Path) -> Group | None:
    """Any generated group of a recording; None if it has none."""
    for shard in shard_folders(samples):
        for segment in sorted(shard.rglob("*.journal")):
            if (group := first_of(segment)) is not None:
                return group
    return None


class Recorded:
    """Reads the groups of some shards of a recording. It changes nothing."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Reads through all journals. Raises OSError if one cannot be read."""
        self._places: dict[int, Place] = {}
        for shard in shards:
            for segment in [*sorted((shard / KEPT).glob("*.journal")), *sorted(shard.glob("*.journal"))]:
                found, _ = groups_of(segment)
                self._places.update(found)

    def __contains__(self, group: int) -> bool:
        return group in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(id for id in self._places if id >= 0))

    def read(self, group: int) -> Group:
        """Reads a group. Raises KeyError if it is not there, ValueError if its record is damaged."""
        return read_at(self._places[group], group)
