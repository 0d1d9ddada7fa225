"""Where a step's time went: assigns each moment between two steps to the one phase that the run waited for.

The trainer does one thing at a time, so all that it does is on the critical path: training, sending weights,
writing a checkpoint, and passing the GPUs to the engines and back ("turn", where both share them).

While the trainer does nothing, it waits for groups. That time is "rollout" while groups are being made, from the
first request to the last acknowledgement, else "evaluation" while held-out prompts are answered. Otherwise it is
"wait": no engine served, or no prompt was asked for.

A checkpoint may be written while groups are made. If it ends after them, the time that both share is
"checkpoint", because the step had to wait for it; else it is "rollout".

In mode sync the phases add up to the step. In the overlapped modes "rollout" counts only while the trainer was
idle. So if "train" is the bottleneck, the engines kept up; if "rollout" is, they did not. Weight rounds hold up
the engines, too, which is not visible here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Interval = tuple[float, float]

# When several overlap, the run waited for the first of them.
PHASES = ("train", "weight_sync", "turn", "checkpoint", "rollout", "evaluation")


class Segment(NamedTuple):
    """A stretch of the critical path. Times are seconds of the clock that the intervals came from."""

    phase: str  # one of PHASES, or "wait"
    began: float
    ended: float


def critical_path(began: float, ended: float, busy: Mapping[str, Sequence[Interval]]) -> list[Segment]:
    """Cuts [began, ended] into consecutive segments without gaps. `busy` has the intervals of each phase."""
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
    """The seconds that each phase was on the path, longest first."""
    totals: dict[str, float] = {}
    for phase, start, end in segments:
        totals[phase] = totals.get(phase, 0.0) + end - start
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def _waited_for(busy: Mapping[str, Sequence[Interval]], start: float, end: float) -> str:
    """The phase of the time between two neighbouring cuts."""
    ends = {
        phase: max(b for a, b in busy.get(phase, ()) if a <= start and end <= b)
        for phase in PHASES
        if any(a <= start and end <= b for a, b in busy.get(phase, ()))
    }
    if ends.keys() == {"checkpoint", "rollout"}:
        return max(ends, key=lambda phase: ends[phase])
    return next(iter(ends), "wait")
