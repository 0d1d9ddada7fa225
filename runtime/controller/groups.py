"""The prompt groups of a run: which are issued, which are there, which are trained, and how many more may be issued.

A group is, in this order: issued to an engine, accepted (journalled), training, trained; or it is dropped, and another
comes for it. Staleness is bounded by how much may be outstanding: with η the bound, B the groups of a step and an
engine whose weights are `lag` versions old, it gets a prompt only while fewer than (1 + η - lag) B groups are issued
and not yet trained. Trained in order, no group is then older than η versions. (The rule of AReaL's staleness manager,
arXiv 2505.24298, section 5.1, counted in groups.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from verst.runtime.controller.in_order import InOrder
from verst.runtime.messages.sample import GroupMeta


class Groups:
    """Each call takes the time of a heap's step, whatever is issued."""

    def __init__(
        self, per_step: int, staleness: int, in_order: bool, done: IdSet, journalled: Iterable[GroupMeta]
    ) -> None:
        """`done`: trained or dropped before; `journalled`: accepted in earlier lives of the run, some trained since."""
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
        self._outstanding = set(self._accepted)  # issued and not yet trained, whatever their state
        self._requeued: set[int] = set()  # issued once, lost with their engine
        self._requeued_order: list[int] = []  # a heap of them, and of some that are requeued no more
        self._next_id = done.below
        self._training: dict[int, GroupMeta] = {}
        self._attempts: dict[int, int] = {}
        self._saving: dict[
            int, tuple[int, ...]
        ] = {}  # version -> groups that its checkpoint makes unnecessary

    # --- generation ---------------------------------------------------------------------------------

    def allowance(self, lag: int) -> int:
        """How many more may be issued to an engine whose weights are so many versions old."""
        bound = (1 + self.staleness - lag) * self.per_step
        return bound - len(self._outstanding) + len(self._requeued)  # the requeued are outstanding already

    def issue(self) -> int:
        """The next one to generate: one that was lost, or a new one."""
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
        """These were lost with their engine."""
        for id in ids:
            self._requeued.add(id)
            heapq.heappush(self._requeued_order, id)

    def failed(self, id: int) -> int:
        """It could not be generated, and is to be again; how often this has happened."""
        self._attempts[id] = self._attempts.get(id, 0) + 1
        self.requeue([id])
        return self._attempts[id]

    def accept(self, meta: GroupMeta) -> None:
        """It is there; perhaps it was before."""
        self._requeued.discard(meta.id)
        if meta.id in self.done or meta.id in self._training:
            return
        if self._order is not None and meta.id not in self._accepted:
            self._order.accept(meta.id)
        self._accepted[meta.id] = meta
        self._outstanding.add(meta.id)

    def drop(self, id: int) -> None:
        """A filter does not want it; too late for one that is accepted."""
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
        """How many wait to be trained on."""
        return len(self._accepted)

    def ready(self) -> bool:
        """Whether the groups of the next step are all there."""
        return self._order.ready(self.per_step) if self._order is not None else self.accepted >= self.per_step

    def begin_step(self) -> tuple[GroupMeta, ...]:
        """Takes the groups of the next step, when they are ready."""
        count = self.per_step
        ids = self._order.take(count) if self._order is not None else sorted(self._accepted)[:count]
        self._training = {id: self._accepted.pop(id) for id in ids}
        return tuple(self._training.values())

    def end_step(self) -> None:
        """They are trained."""
        for id in self._training:
            self.done.add(id)
            self._outstanding.discard(id)
            self._trained_since_save.append(id)
        self._training = {}

    # --- checkpoints --------------------------------------------------------------------------------

    def begin_save(self, version: int) -> None:
        """A checkpoint is begun, of what is trained so far."""
        self._saving[version] = tuple(self._trained_since_save)
        self._trained_since_save = []

    def end_save(self, version: int) -> tuple[int, ...]:
        """It is there; the groups that need no longer be journalled."""
        return self._saving.pop(version, ())


class IdSet:
    """A set of numbers that grows mostly from below: a watermark and the few above it."""

    def __init__(self, below: int = 0, above: Iterable[int] = ()) -> None:
        self.below = below
        self.above = set(above)

    def __contains__(self, id: int) -> bool:
        return id < self.below or id in self.above

    def add(self, id: int) -> None:
        """Adds one."""
        self.above.add(id)
        while self.below in self.above:
            self.above.discard(self.below)
            self.below += 1
