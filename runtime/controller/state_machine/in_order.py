"""Groups in dataset order: which come next, and whether all of these are accepted.

A call takes the time of a heap operation, however many groups are issued. Ten thousand engines work on tens of
thousands of groups, and one slow group may hold up all later ones for thousands of events.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable


class InOrder:
    """The groups that are issued and not yet trained. Each is open (not finished) or accepted."""

    def __init__(self, accepted: Iterable[int] = ()) -> None:
        self._open: set[int] = set()
        self._open_order: list[int] = []  # a heap of these, and of some that are no longer open
        self._accepted = sorted(accepted)  # a heap: accepted groups that an open one may precede
        self._next: list[int] = []  # ascending: accepted groups that no open one precedes

    def issue(self, id: int) -> None:
        """A group is given to an engine: it is open."""
        self._open.add(id)
        heapq.heappush(self._open_order, id)

    def accept(self, id: int) -> None:
        """A group is accepted for the first time."""
        self._open.discard(id)
        if self._next and id < self._next[-1]:  # issued in an earlier life of the run, so it was not open
            bisect.insort(self._next, id)
        else:
            heapq.heappush(self._accepted, id)

    def reopen(self, id: int) -> None:
        """A group is open again, whatever it was: those behind it must wait for it."""
        if id in self._open:
            return
        self._withdraw(id)
        place = bisect.bisect_left(self._next, id)
        self._next, behind = self._next[:place], self._next[place:]
        for other in behind:
            heapq.heappush(self._accepted, other)
        self.issue(id)

    def drop(self, id: int) -> None:
        """A group will never be trained on."""
        if id in self._open:
            self._open.discard(id)
        else:
            self._withdraw(id)

    def _withdraw(self, id: int) -> None:
        """Forgets an accepted group. Slow, but rare."""
        if id in self._next:
            self._next.remove(id)
        elif id in self._accepted:
            self._accepted.remove(id)
            heapq.heapify(self._accepted)

    def ready(self, count: int) -> bool:
        """Whether the next `count` groups in dataset order are all accepted."""
        while self._open_order and self._open_order[0] not in self._open:
            heapq.heappop(self._open_order)
        first_open = self._open_order[0] if self._open_order else None
        while self._accepted and (first_open is None or self._accepted[0] < first_open):
            self._next.append(heapq.heappop(self._accepted))
        return len(self._next) >= count

    def take(self, count: int) -> list[int]:
        """Removes and returns the next `count` groups, which must be ready."""
        taken, self._next = self._next[:count], self._next[count:]
        return taken
