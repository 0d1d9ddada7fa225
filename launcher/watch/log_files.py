"""Finds the log files of a run and reads their new lines, cheaply even for thousands of logs.

Each poll costs one stat per file. Only files that have grown are opened, one at a time, and read in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import aside

_PIECE = 1 << 20


def log_files(folder: RunFolder, attempt: int | None) -> dict[Path, str]:
    """The log files of one life of the run, each with the name of its process.

    `attempt` is the number of the life. None means the current one, including the logs of processes that were
    started in an earlier life and still run: engines outlast a life and keep their log file.
    """
    present = folder.generation if attempt is None else attempt
    found = _files(folder, present)
    if attempt is None and present > 0:
        began = os.stat(folder.root / "generation").st_mtime
        for earlier in range(present - 1, -1, -1):
            for path, name in _files(folder, earlier).items():
                if path.stat().st_mtime > began and name not in found.values():
                    found[path] = name
    return found


def _files(folder: RunFolder, attempt: int) -> dict[Path, str]:
    root = folder.logs / f"attempt-{attempt}"
    return {path: path.stem for path in sorted(root.glob("*/*/*.log")) if path.parts[-3] != "agents"}


class GrowingLog:
    """Reads a log's new lines since the last call, even if the log was set aside meanwhile.

    An incomplete last line is returned once it is complete. To set a log aside is to move its text to
    NAME.log.1 (`runtime/run/log_lines.py`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._new = True

    def lines(self) -> Iterator[str]:
        """The new lines. The first call begins with the logs that were set aside."""
        if self._new:
            self._new = False
            count = 0
            while aside(self.path, count + 1).exists():
                count += 1
            for number in range(count, 0, -1):
                yield from self._read(aside(self.path, number), final=True)
        try:
            size = os.stat(self.path).st_size
        except FileNotFoundError:
            return
        if (
            size < self._offset
        ):  # it was set aside: its unread lines are now in the newest file that was set aside
            yield from self._read(aside(self.path, 1), final=True)
            self._offset = 0
        if size > self._offset:
            yield from self._read(self.path)

    def _read(self, path: Path, final: bool = False) -> Iterator[str]:
        """The lines of a file from the offset on. `final`: the file no longer grows, so its last line is complete."""
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            stream.seek(self._offset)
            rest = b""
            while piece := stream.read(_PIECE):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    self._offset += len(line) + 1
                    yield line.decode(errors="replace")
        if final:
            self._offset = 0
            if rest:
                yield rest.decode(errors="replace")
