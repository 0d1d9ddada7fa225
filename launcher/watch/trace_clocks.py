"""How far the clocks of a run's hosts are apart, as far as its own calls tell.

A trainer rank's phases lie within the controller's call of that step, and an engine's pause within the call of its
weight round. On another host with a right clock they do so in the trace too. Where they do not, the host's spans
are moved by the least that puts them there: a bound, good to about the length of a call's empty ends. Clocks that
are wrong by less than that are not seen, and a clock that drifts is moved by one amount.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# What happens elsewhere within a call of the controller.
INSIDE = {
    "train": {"fetch", "old_logprobs", "ref_logprobs", "forward_backward", "optimizer"},
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
    """A span as far as clocks are concerned. Times in seconds."""

    host: str
    life: int  # of the run
    version: int
    name: str
    began: float
    ended: float


def clock_offsets(spans: Iterable[Moment], reference: str) -> Mapping[str, float]:
    """Seconds to add to each host's times, those of the `reference` host (the controller's) being right.

    Hosts whose spans contradict each other get 0: their clock was set meanwhile.
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
