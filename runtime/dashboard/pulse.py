"""Measures how long ago a file changed, without relying on the clocks of other hosts."""

from __future__ import annotations

import time


class Pulse:
    """The ages of files since we saw them change. The first time, the age comes from the wall clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # mtime, our monotonic clock

    def note(self, name: str, mtime: float) -> float:
        """Notes a file's modification time. Returns the seconds since the file changed."""
        now = time.monotonic()
        before = self._seen.get(name)
        if before is None:
            self._seen[name] = (mtime, now - max(0.0, time.time() - mtime))
        elif before[0] != mtime:
            self._seen[name] = (mtime, now)
        return now - self._seen[name][1]

    def forget_all_but(self, names: set[str]) -> None:
        """Forgets files that no longer exist."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
