"""Reads how a run ended, and the last log lines of the process that failed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals

from verst.launcher.runs.failures import failures
from verst.runtime.run.ending import STOPPED, read_end
from verst.runtime.run.folder import RunFolder


@dataclass(frozen=True)
class Ending:
    """How a life of the run ended, and why."""

    ok: bool
    reason: str
    signal: Signals | None = None  # the signal to the launcher that ended the run
    resumes: bool = False  # another life of the run will start by itself
    stopped: bool = False  # it was asked to stop, and saved
    lines: list[str] = field(default_factory=list)  # the last log lines of the process that failed

    @property
    def style(self) -> str:
        """The colour of the reason on a terminal."""
        return "green" if self.ok else "yellow" if self.resumes or self.stopped else "bold red"

    @property
    def exit_code(self) -> int:
        """The command's exit code: 0, 1, or 128 + the signal's number, as in a shell."""
        return 0 if self.ok else 1 if self.signal is None else 128 + self.signal


def read_ending(folder: RunFolder, generation: int) -> Ending | None:
    """The end of a life of the run, as the node agents recorded it; None if it has not ended."""
    end = read_end(folder, generation)
    if end is None:
        return None
    return Ending(end.code == 0, end.reason, resumes=end.resumes, stopped=end.code == STOPPED)


def last_words(folder: RunFolder, generation: int) -> list[str]:
    """The last log lines of the process that failed first, from the event that its agent wrote."""
    return next((failure.lines for failure in failures(folder, generation)), [])


def last_lines(log: Path, count: int = 30) -> list[str]:
    """The last `count` lines of a log. The log may be long, and need not be valid text."""
    with log.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - 256 * count))
        return stream.read().decode("utf-8", errors="replace").splitlines()[-count:]
