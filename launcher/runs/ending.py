"""How a run ended, and the last words of the process that ended it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from verst.launcher.runs.failures import failures
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder


@dataclass(frozen=True)
class Ending:
    """A good end, or why not."""

    ok: bool
    reason: str
    signal: Signals | None = None  # that ended the run from outside
    resumes: bool = False  # another life of the run follows by itself
    lines: list[str] = field(default_factory=list)  # the last ones of the process that failed

    @property
    def exit_code(self) -> int:
        """0, 1, or 128 + signal as shells have it."""
        return 0 if self.ok else 1 if self.signal is None else 128 + self.signal


def read_ending(folder: RunFolder, generation: int) -> Ending | None:
    """The end that the node agents have agreed on, if it has come."""
    end = read_end(folder, generation)
    return None if end is None else Ending(ok=end.code == 0, reason=end.reason, resumes=end.resumes)


def last_words(folder: RunFolder, generation: int) -> list[str]:
    """The last lines of the process that failed first, from the event that its agent wrote."""
    return next((failure.lines for failure in failures(folder, generation)), [])


def last_lines(log: Path, count: int = 30) -> list[str]:
    """The end of a log that may be long or not text."""
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - 256 * count))
        return stream.read().decode("utf-8", errors="replace").splitlines()[-count:]
