"""What a reward function may return instead of a number."""

from __future__ import annotations

import msgspec


class Score(msgspec.Struct, frozen=True):
    """A reward and its parts: `Score(0.8, {"correct": 1.0, "brief": -0.2})`. The parts need not add up to it."""

    value: float  # what is trained on; finite
    parts: dict[str, float] = {}  # finite; steps report their means as `scores/NAME`
