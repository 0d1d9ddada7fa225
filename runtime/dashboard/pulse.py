"""How long ago a file changed, without trust in the clocks of other hosts."""

from __future__ import annotations

import time


class Pulse:
    """Ages of things by when we saw them change; only what we find at first is dated by the wall clock."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}  # mtime, our monotonic clock

    def note(self, name: str, mtime: float) -> float:
        """Takes in a file's time of change. Returns the seconds since it changed."""
        now = time.monotonic()
        before = self._seen.get(name)
        if before is None:
            self._seen[name] = (mtime, now - max(0.0, time.time() - mtime))
        elif before[0] != mtime:
            self._seen[name] = (mtime, now)
        return now - self._seen[name][1]

    def forget_all_but(self, names: set[str]) -> None:
        """Drops what is there no more."""
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
