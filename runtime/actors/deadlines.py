"""Keeps many deadlines with one timer, set for the earliest. Most calls end in time, so it rarely rings.

A process that was suspended finds all its timers due at once when it wakes up. Its deadlines are about others, so
the timer then rings once more a moment later: `forgive` may move the deadlines until then.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

_GRAIN_S = 0.001  # the least time between two rings
_LATE_S = 0.5  # a ring that comes so late was held up by this process itself
_AGAIN_S = 0.2


class Deadlines[K]:
    """Calls `passed(key)` on the running loop when the deadline of `key` has passed."""

    def __init__(self, passed: Callable[[K], None]) -> None:
        self._passed = passed
        self._loop = asyncio.get_running_loop()
        self._at: dict[K, float] = {}  # loop time
        self._rings_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._put_off = False  # whether the last ring was late

    def set(self, key: K, at: float) -> None:
        """Sets the deadline of `key` to `at`, in loop time."""
        self._at[key] = at
        if at < self._rings_at:
            self._ring_at(at)

    def drop(self, key: K) -> None:
        """Removes a deadline. Does nothing if it has passed."""
        self._at.pop(key, None)

    def forgive(self, seconds: float) -> None:
        """Moves all deadlines, because this process did not run for so long."""
        self._at = {key: at + seconds for key, at in self._at.items()}

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
        now = self._loop.time()
        if now - self._rings_at > _LATE_S and not self._put_off:
            self._put_off = True
            self._ring_at(now + _AGAIN_S)
            return
        self._put_off = False
        self._rings_at = math.inf
        for key in [key for key, at in self._at.items() if at <= now]:
            self._at.pop(key, None)
            self._passed(key)
        if self._at:
            self._ring_at(max(min(self._at.values()), now + _GRAIN_S))
