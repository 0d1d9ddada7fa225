"""Finds the log files of a run and reads their new lines, cheaply even for thousands of logs.

Each poll costs one stat per file. Only files that have grown are opened, one at a time, and read in pieces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import aside

_AT_ONCE = 64 << 20  # bytes of all logs together that are in memory while they are merged
_PIECES = 4 << 10, 1 << 20  # the least and the most of one log


def piece_bytes(logs: int) -> int:
    """How much of each of so many logs to read at once."""
    least, most = _PIECES
    return max(least, min(most, _AT_ONCE // max(1, logs)))


def log_files(folder: RunFolder, life: int | None) -> dict[Path, str]:
    """The log files of one life of the run, each with the name of its process.

    `life` None means the current one, including the logs of processes that were
    started in an earlier life and still run: engines outlast a life and keep their log file.
    """
    present = folder.generation if life is None else life
    found = _files(folder, present)
    if life is None and present > 0:
        began = os.stat(folder.root / "life").st_mtime
        for earlier in range(present - 1, -1, -1):
            for path, name in _files(folder, earlier).items():
                if path.stat().st_mtime > began and name not in found.values():
                    found[path] = name
    return found


def _files(folder: RunFolder, life: int) -> dict[Path, str]:
    root = folder.logs / f"life-{life}"
    return {path: path.stem for path in sorted(root.glob("*/*/*.log")) if path.parts[-3] != "agents"}


class GrowingLog:
    """Reads a log's new lines since the last call, even if the log was set aside meanwhile.

    An incomplete last line is returned once it is complete. To set a log aside is to move its text to
    NAME.log.1 (`runtime/run/log_lines.py`).
    """

    def __init__(self, path: Path, piece: int = _PIECES[1]) -> None:
        """`piece`: bytes to read at once. The file is closed between two pieces."""
        self.path = path
        self._piece = piece
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

    def skip(self) -> None:
        """Leaves out the lines that are there now."""
        self._new = False
        self._offset = self.path.stat().st_size

    def last(self, count: int) -> list[str]:
        """The last `count` lines that are there now. `lines` then goes on after them."""
        self._new = False
        data, self._offset = _end_of(self.path, count)
        lines = data.split(b"\n")[:-1]
        number = 1
        while len(lines) < count and (earlier := aside(self.path, number)).exists():
            more, _ = _end_of(earlier, count - len(lines))
            lines = [*(more if more.endswith(b"\n") else more + b"\n").split(b"\n")[:-1], *lines]
            number += 1
        return [line.decode(errors="replace") for line in lines[-count:]] if count else []

    def _read(self, path: Path, final: bool = False) -> Iterator[str]:
        """The lines of a file from the offset on. `final`: the file no longer grows, so its last line is complete."""
        rest, position = b"", self._offset
        while True:
            try:
                with path.open("rb") as stream:
                    stream.seek(position)
                    piece = stream.read(self._piece)
            except FileNotFoundError:
                break
            position += len(piece)
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                self._offset += len(line) + 1
                yield line.decode(errors="replace")
            if len(piece) < self._piece:
                break
        if final:
            self._offset = 0
            if rest:
                yield rest.decode(errors="replace")


def _end_of(path: Path, count: int) -> tuple[bytes, int]:
    """The end of a file with at least its last `count` whole lines, and the offset after the last of them."""
    with path.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        data, begin = b"", end
        while begin and data.count(b"\n") <= count:
            size = min(begin, _PIECES[1])
            begin -= size
            stream.seek(begin)
            data = stream.read(size) + data
    torn = len(data) - (data.rfind(b"\n") + 1)
    return data[: len(data) - torn], end - torn
