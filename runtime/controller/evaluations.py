"""Evaluations on held-out prompts: when one is due, which prompts wait, and the score when all have answered."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from verst.runtime.controller import events as ev


class Evaluations:
    """One at a time, each of one version of the weights."""

    def __init__(
        self, prompts: int, interval: int | None, first: int, last: int, done: Iterable[int] = ()
    ) -> None:
        """Of `prompts` prompts (0: never), before and after the versions `first` to `last`, and every `interval`
        between. `done` are versions that are evaluated already."""
        self.done = set(done)
        self._prompts, self._interval = prompts, interval
        self._first, self._last = first, last
        self._waiting: list[tuple[int, int]] | None = (
            None  # a heap of (failed attempts, id); None: none is running
        )
        self._attempts: dict[int, int] = {}
        self._scores: dict[int, float] = {}

    @property
    def running(self) -> bool:
        """Whether one has begun and not ended."""
        return self._waiting is not None

    @property
    def waiting(self) -> int:
        """Prompts that no engine has."""
        return len(self._waiting or ())

    def due(self, version: int) -> bool:
        """Whether one of this version is to be made, or completed."""
        if not self._prompts or version in self.done:
            return False
        step = version - self._first
        at_interval = self._interval is not None and step % self._interval == 0
        return step == 0 or version == self._last or at_interval

    def begin(self) -> None:
        """All prompts wait."""
        self._waiting = [(0, id) for id in range(self._prompts)]
        self._attempts, self._scores = {}, {}

    def take(self, count: int) -> list[int]:
        """Up to `count` prompts for an engine, those that failed before last."""
        assert self._waiting is not None
        return [heapq.heappop(self._waiting)[1] for _ in range(min(count, len(self._waiting)))]

    def requeue(self, ids: Iterable[int]) -> None:
        """These were lost with their engine."""
        if self._waiting is not None:
            for id in ids:
                heapq.heappush(self._waiting, (self._attempts.get(id, 0), id))

    def failed(self, id: int) -> int:
        """It could not be answered, and is to be again; how often this has happened in this evaluation."""
        if not self.running:
            return 0
        self._attempts[id] = self._attempts.get(id, 0) + 1
        self.requeue([id])
        return self._attempts[id]

    def scored(self, id: int, score: float, version: int) -> ev.ReportEval | None:
        """The report, when this was the last answer."""
        if not self.running:
            return None
        self._scores[id] = score
        if len(self._scores) < self._prompts:
            return None
        self._waiting = None
        self.done.add(version)
        mean = sum(self._scores.values()) / self._prompts
        return ev.ReportEval(version, self._moment(version), mean, self._prompts)

    def _moment(self, version: int) -> str:
        if version == self._last:
            return "after"
        return "before" if version == self._first else "during"
