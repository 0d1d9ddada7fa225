"""Where a step's time went: each moment between two steps is given to the one thing that the run waited for.

The trainer does one thing at a time, so whatever it does is on the critical path: training, sending weights,
writing a checkpoint, passing the GPUs to the engines and back ("turn", where both share them). While it does
nothing it waits for groups: that time is "rollout" as far as groups were being made, from the first request to
the last acknowledgement, and "wait" otherwise (no engine served, nothing was asked for). A checkpoint that is
written while groups are made holds up the step only if it ends after them, and then takes all the time they
share, else none. In mode sync this splits the step into its parts. In the overlapped modes rollout counts only
where the trainer stood idle for it, so "train" as the bottleneck says that the engines kept up, and "rollout"
that they did not; that a weight round also holds up the engines is not seen here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Interval = tuple[float, float]

# Where several are true at once, the first is what the run waited for.
PHASES = ("train", "weight_sync", "turn", "checkpoint", "rollout")


class Segment(NamedTuple):
    """A stretch of the critical path, in seconds of the clock that the intervals came from."""

    phase: str  # of PHASES, or "wait"
    began: float
    ended: float


def critical_path(began: float, ended: float, busy: Mapping[str, Sequence[Interval]]) -> list[Segment]:
    """Cuts [began, ended] into segments, one after another without gaps."""
    cuts = {began, ended}
    for intervals in busy.values():
        cuts.update(min(max(edge, began), ended) for interval in intervals for edge in interval)
    moments = sorted(cuts)
    segments: list[Segment] = []
    for start, end in itertools.pairwise(moments):
        phase = _waited_for(busy, start, end)
        if segments and segments[-1].phase == phase:
            segments[-1] = segments[-1]._replace(ended=end)
        else:
            segments.append(Segment(phase, start, end))
    return segments


def seconds_by_phase(segments: Sequence[Segment]) -> dict[str, float]:
    """How long each phase was on the path, the longest first."""
    totals: dict[str, float] = {}
    for phase, start, end in segments:
        totals[phase] = totals.get(phase, 0.0) + end - start
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _waited_for(busy: Mapping[str, Sequence[Interval]], start: float, end: float) -> str:
    """The phase that a moment between two cuts belongs to."""
    ends = {
        phase: max(b for a, b in busy.get(phase, ()) if a <= start and end <= b)
        for phase in PHASES
        if any(a <= start and end <= b for a, b in busy.get(phase, ()))
    }
    if ends.keys() == {"checkpoint", "rollout"}:
        return max(ends, key=lambda phase: ends[phase])
    return next(iter(ends), "wait")
