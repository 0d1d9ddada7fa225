"""Evaluations on held-out prompts: when one is due, which prompts still wait, and the score once all are answered."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from verst.runtime.controller.state_machine import events as ev


class Evaluations:
    """Runs one evaluation at a time, each of one weight version."""

    def __init__(
        self, prompts: int, interval: int | None, first: int, last: int, done: Iterable[int] = ()
    ) -> None:
        """Plans evaluations at the versions `first` and `last`, and every `interval` versions between them.

        Each has `prompts` prompts; with 0 there are none. The versions in `done` are already evaluated.
        """
        self.done = set(done)
        self._prompts, self._interval = prompts, interval
        self._first, self._last = first, last
        # A heap of (failed attempts, id); None: no evaluation is running.
        self._waiting: list[tuple[int, int]] | None = None
        self._attempts: dict[int, int] = {}
        self._scores: dict[int, float] = {}
        self._version = first

    @property
    def running(self) -> bool:
        """Whether an evaluation has begun and not ended."""
        return self._waiting is not None

    @property
    def waiting(self) -> int:
        """The number of prompts that no engine works on."""
        return len(self._waiting or ())

    @property
    def progress(self) -> tuple[int, int]:
        """The number of scored prompts in the running evaluation, and of all its prompts."""
        return len(self._scores), self._prompts

    def due(self, version: int) -> bool:
        """Whether this version has to be evaluated and is not yet."""
        if not self._prompts or version in self.done:
            return False
        step = version - self._first
        at_interval = self._interval is not None and step % self._interval == 0
        return step == 0 or version == self._last or at_interval

    def runs(self, version: int | None) -> bool:
        """Whether the evaluation of this version has begun and not ended. Answers of others come too late."""
        return self.running and version == self._version

    def begin(self, version: int) -> None:
        """Begins the evaluation of a version: all prompts wait."""
        self._version = version
        self._waiting = [(0, id) for id in range(self._prompts)]
        self._attempts, self._scores = {}, {}

    def take(self, count: int) -> list[int]:
        """Takes up to `count` prompts for an engine; prompts that have failed before come last."""
        assert self._waiting is not None
        return [heapq.heappop(self._waiting)[1] for _ in range(min(count, len(self._waiting)))]

    def requeue(self, ids: Iterable[int]) -> None:
        """Puts back prompts whose engine was lost."""
        if self._waiting is not None:
            for id in ids:
                heapq.heappush(self._waiting, (self._attempts.get(id, 0), id))

    def failed(self, id: int) -> int:
        """Puts back a prompt that could not be answered. Returns how often it has failed in this evaluation."""
        self._attempts[id] = self._attempts.get(id, 0) + 1
        self.requeue([id])
        return self._attempts[id]

    def scored(self, id: int, score: float) -> ev.ReportEval | None:
        """Notes a prompt's score. Returns the report if this was the last one, else None."""
        self._scores[id] = score
        if len(self._scores) < self._prompts:
            return None
        self._waiting = None
        self.done.add(self._version)
        mean = sum(self._scores.values()) / self._prompts
        return ev.ReportEval(self._version, self._moment(), mean, self._prompts)

    def _moment(self) -> str:
        if self._version == self._last:
            return "after"
        return "before" if self._version == self._first else "during"
