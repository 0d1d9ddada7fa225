"""Groups in the order of the dataset: which come next, and whether all of them are there.

Each question takes the time of a heap's step, whatever is issued: with ten thousand engines tens of thousands of groups
are, and one straggler may hold up all behind it for thousands of events.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable


class InOrder:
    """Numbers of groups that are issued and not yet trained, each open or accepted."""

    def __init__(self, accepted: Iterable[int] = ()) -> None:
        self._open: set[int] = set()
        self._open_order: list[int] = []  # a heap of them, and of some that are open no more
        self._accepted = sorted(accepted)  # a heap: those that an open one may come before
        self._next: list[int] = []  # ascending: accepted ones that no open one comes before

    def issue(self, id: int) -> None:
        """A group is generated from now on."""
        self._open.add(id)
        heapq.heappush(self._open_order, id)

    def accept(self, id: int) -> None:
        """It is there, for the first time."""
        self._open.discard(id)
        if self._next and id < self._next[-1]:  # of an earlier life of the run: it was not known to be open
            bisect.insort(self._next, id)
        else:
            heapq.heappush(self._accepted, id)

    def drop(self, id: int) -> None:
        """It will never be there."""
        self._open.discard(id)

    def ready(self, count: int) -> bool:
        """Whether the next `count` groups in order are all there."""
        while self._open_order and self._open_order[0] not in self._open:
            heapq.heappop(self._open_order)
        first_open = self._open_order[0] if self._open_order else None
        while self._accepted and (first_open is None or self._accepted[0] < first_open):
            self._next.append(heapq.heappop(self._accepted))
        return len(self._next) >= count

    def take(self, count: int) -> list[int]:
        """Takes them away, when they are ready."""
        taken, self._next = self._next[:count], self._next[count:]
        return taken
