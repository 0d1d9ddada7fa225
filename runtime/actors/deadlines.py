"""Keeps many deadlines with one timer, set for the earliest. Most calls end in time, so it rarely rings."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_GRAIN_S = 0.001  # the least time between two rings


class Deadlines[K]:
    """Calls `passed(key)` on the running loop when the deadline of `key` has passed."""

    def __init__(self, passed: Callable[[K], None]) -> None:
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._at: dict[K, float] = {}  # loop time
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, key: K, at: float) -> None:
        """Sets the deadline of `key` to `at`, in loop time."""
        self._at[key] = at
        if at < self._rings_at:
            self._ring_at(at)

    def drop(self, key: K) -> None:
        """Removes a deadline. Does nothing if it has passed."""
        self._at.pop(key, None)

    def close(self) -> None:
        """Removes all deadlines; `passed` is not called any more."""
        self._at.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _ring_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._rings_at = math.inf
        now = self._loop.time()
        for key in [key for key, at in self._at.items() if at <= now]:
            self._at.pop(key, None)
            self._passed(key)
        if self._at:
            self._ring_at(max(min(self._at.values()), now + _GRAIN_S))
