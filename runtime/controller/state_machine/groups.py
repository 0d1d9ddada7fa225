"""The prompt groups of a run: the state of each, and how many more may be issued.

A group is issued to an engine, accepted (journalled), in training, and trained, in this order. Or it is dropped, and
another group takes its place.

Limiting the groups that are outstanding, i.e. issued and not yet trained, bounds the staleness. Let η be the bound, B
the number of groups in a step, and `lag` the number of versions that an engine's weights are behind. The engine gets
a prompt only while fewer than (1 + η - lag) B groups are outstanding. If groups are trained in order, none is then
older than η versions. (The rule of AReaL's staleness manager, arXiv 2505.24298, section 5.1, counted in groups.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from verst.runtime.controller.state_machine.in_order import InOrder
from verst.runtime.messages.sample import GroupMeta


class Groups:
    """All groups of a run. A call takes the time of a heap operation, however many groups are issued."""

    def __init__(
        self, per_step: int, staleness: int, in_order: bool, done: IdSet, journalled: Iterable[GroupMeta]
    ) -> None:
        """Begins with the groups of earlier lives of the run.

        `done` are those that were trained or dropped. `journalled` are those that the store has; some of them may
        have been trained since.
        """
        self.per_step, self.staleness = per_step, staleness
        self.done = done
        self._accepted: dict[int, GroupMeta] = {}
        self._trained_since_save: list[int] = []
        for meta in journalled:
            if meta.id in done:
                self._trained_since_save.append(meta.id)
            else:
                self._accepted[meta.id] = meta
        self._order = InOrder(self._accepted) if in_order else None
        self._outstanding = set(self._accepted)  # issued and not yet trained, in any state
        self._requeued: set[int] = set()  # issued before, and to be issued again
        self._requeued_order: list[int] = []  # a heap of these, and of some no longer in the set
        self._next_id = done.below
        self._training: dict[int, GroupMeta] = {}
        self._attempts: dict[int, int] = {}
        self._saving: dict[int, tuple[int, ...]] = {}  # version -> groups that its checkpoint covers

    # --- generation ---------------------------------------------------------------------------------

    def allowance(self, lag: int) -> int:
        """How many more groups may be issued to an engine whose weights are `lag` versions behind."""
        bound = (1 + self.staleness - lag) * self.per_step
        return bound - len(self._outstanding) + len(self._requeued)  # requeued groups are already outstanding

    def issue(self) -> int:
        """The number of the next group to generate: a requeued one if there is any, else a new one."""
        while self._requeued_order:
            id = heapq.heappop(self._requeued_order)
            if id in self._requeued:
                self._requeued.discard(id)
                return id
        while self._next_id in self.done or self._next_id in self._outstanding:
            self._next_id += 1
        self._outstanding.add(self._next_id)
        if self._order is not None:
            self._order.issue(self._next_id)
        return self._next_id

    def requeue(self, ids: Iterable[int]) -> None:
        """Puts back groups that were lost with their engine."""
        for id in ids:
            self._requeued.add(id)
            heapq.heappush(self._requeued_order, id)

    def failed(self, id: int) -> int:
        """Puts back a group that could not be generated. Returns how often it has failed."""
        self._attempts[id] = self._attempts.get(id, 0) + 1
        self.requeue([id])
        return self._attempts[id]

    def accept(self, meta: GroupMeta) -> None:
        """A group is journalled. It may be reported more than once."""
        self._requeued.discard(meta.id)
        if meta.id in self.done or meta.id in self._training:
            return
        if self._order is not None and meta.id not in self._accepted:
            self._order.accept(meta.id)
        self._accepted[meta.id] = meta
        self._outstanding.add(meta.id)

    def drop(self, id: int) -> None:
        """The recipe's filter rejected a group. Has no effect on a group that is already accepted."""
        self._requeued.discard(id)
        if id in self._accepted or id in self._training:
            return
        self._outstanding.discard(id)
        self.done.add(id)
        if self._order is not None:
            self._order.drop(id)

    # --- training -----------------------------------------------------------------------------------

    @property
    def accepted(self) -> int:
        """The number of groups that wait to be trained on."""
        return len(self._accepted)

    def ready(self) -> bool:
        """Whether all groups of the next step are accepted."""
        return self._order.ready(self.per_step) if self._order is not None else self.accepted >= self.per_step

    def begin_step(self) -> tuple[GroupMeta, ...]:
        """Takes the groups of the next step, which must be ready."""
        count = self.per_step
        ids = self._order.take(count) if self._order is not None else sorted(self._accepted)[:count]
        self._training = {id: self._accepted.pop(id) for id in ids}
        return tuple(self._training.values())

    def end_step(self) -> None:
        """The step has ended: its groups are trained."""
        for id in self._training:
            self.done.add(id)
            self._outstanding.discard(id)
            self._trained_since_save.append(id)
        self._training = {}

    # --- checkpoints --------------------------------------------------------------------------------

    def begin_save(self, version: int) -> None:
        """A checkpoint begins. It covers all groups that are trained so far."""
        self._saving[version] = tuple(self._trained_since_save)
        self._trained_since_save = []

    def end_save(self, version: int) -> tuple[int, ...]:
        """The checkpoint is complete. Returns the groups that no longer need to be journalled."""
        return self._saving.pop(version, ())


class IdSet:
    """A set of numbers that fills up from below: all numbers below `below`, and a few above it."""

    def __init__(self, below: int = 0, above: Iterable[int] = ()) -> None:
        self.below = below
        self.above = set(above)

    def __contains__(self, id: int) -> bool:
        return id < self.below or id in self.above

    def add(self, id: int) -> None:
        """Adds a number."""
        self.above.add(id)
        while self.below in self.above:
            self.above.discard(self.below)
            self.below += 1
