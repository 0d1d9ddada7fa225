"""How a run ended, and the last words of the process that ended it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from signal import Signals


@dataclass(frozen=True)
class Ending:
    """A good end, or why not."""

    ok: bool
    reason: str
    log: str | None = None  # of the process that failed
    signal: Signals | None = None  # that ended the run from outside
    by_itself: bool = False  # the run ended, and its agents are leaving

    @property
    def exit_code(self) -> int:
        """0, 1, or 128 + signal as shells have it."""
        return 0 if self.ok else 1 if self.signal is None else 128 + self.signal


def last_lines(log: Path, count: int = 30) -> list[str]:
    """The end of a log that may be long or not text."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 256 * count))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return lines[-count:]
