"""What a reward function may return instead of a number, and the mark of a generate function that scores itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Score(msgspec.Struct, frozen=True):
    """A reward and its parts: `Score(0.8, {"correct": 1.0, "brief": -0.2})`. The parts need not add up to it."""

    value: float  # what is trained on; finite
    parts: dict[str, float] = {}  # finite; steps report their means as `scores/NAME`


def scores_itself[F: Callable[..., Any]](function: F) -> F:
    """Decorator of a generate function that gives each episode its score: the recipe may then have no reward."""
    function.scores_itself = True  # type: ignore[attr-defined]
    return function


def does_score_itself(function: Any) -> bool:
    """Whether a function is marked with `scores_itself`."""
    return getattr(function, "scores_itself", False) is True
