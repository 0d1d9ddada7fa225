"""A set of numbers that takes little memory while it fills up from below."""

from __future__ import annotations

from collections.abc import Iterable


class IdSet:
    """A set of numbers that fills up from below: all numbers below `below`, and a few above it."""

    def __init__(self, below: int = 0, above: Iterable[int] = ()) -> None:
        self.below = below
        self.above = set(above)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, int) and (id < self.below or id in self.above)

    def add(self, id: int) -> None:
        """Adds a number."""
        self.above.add(id)
        while self.below in self.above:
            self.above.discard(self.below)
            self.below += 1
