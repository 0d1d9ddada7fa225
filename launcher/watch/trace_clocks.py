"""Estimates how far the clocks of a run's hosts are apart, from the spans of the run's own calls.

A trainer rank's phases happen within the controller's call for that step, and an engine's pause within the
call for its weight round. If the clocks agree, the spans in the trace lie within each other too. If they do
not, the host's spans are shifted by the smallest amount that makes them do so. That is a lower bound of the
error, accurate to about the idle time at the ends of a call. Smaller errors are not detected, and a drifting
clock gets one constant shift.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# For each call of the controller, the spans on other hosts that happen within it.
INSIDE = {
    "train": {
        "fetch",
        "own_routing",
        "reference_logprobs",
        "teacher_logprobs",
        "forward_backward",
        "optimizer",
    },
    "weight_sync": {
        "connect",
        "pause",
        "write",
        "transfer",
        "load",
        "check",
        "resume",
        "weights",
        "read_weights",
    },
}
_CALLS = {name: call for call, names in INSIDE.items() for name in names}


class Moment(NamedTuple):
    """The part of a span that matters for clocks. Times are in seconds."""

    host: str
    life: int  # life of the run
    version: int
    name: str
    began: float
    ended: float


def clock_offsets(spans: Iterable[Moment], reference: str) -> Mapping[str, float]:
    """The seconds to add to each host's times, if the clock of the `reference` host (the controller's) is right.

    A host whose spans contradict each other gets 0: its clock was set during the run.
    """
    spans = list(spans)
    calls: dict[tuple[int, int, str], tuple[float, float]] = {}
    for span in spans:
        if span.host == reference and span.name in INSIDE:
            key = (span.life, span.version, span.name)
            began, ended = calls.get(key, (span.began, span.ended))
            calls[key] = min(began, span.began), max(ended, span.ended)
    bounds: dict[str, tuple[float, float]] = {}
    for span in spans:
        call = calls.get((span.life, span.version, _CALLS.get(span.name, "")))
        if call is not None and span.host != reference:
            low, high = bounds.get(span.host, (float("-inf"), float("inf")))
            bounds[span.host] = max(low, call[0] - span.began), min(high, call[1] - span.ended)
    return {host: _nearest_zero(low, high) for host, (low, high) in bounds.items()}


def _nearest_zero(low: float, high: float) -> float:
    return 0.0 if low > high else max(low, min(high, 0.0))
