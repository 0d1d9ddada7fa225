"""Follows metrics.jsonl, events.jsonl and similar files while they grow.

It reads in bites of bounded size, for callers that must answer requests meanwhile: a day's metrics are many
megabytes, and a web page is waiting.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BITE = 4 << 20


class LineReader:
    """Reads the whole lines that are appended to a file, which may not exist yet.

    A half-written last line is left for later. `epoch` counts how often the file was replaced or cut short:
    the lines that were read before are then no longer valid.
    """

    def __init__(self, path: Path, bite: int = BITE) -> None:
        self._path = path
        self._bite = bite
        self._offset = 0
        self._inode: int | None = None
        self._inside_a_monster = False  # inside a line that is longer than a bite, which is dropped
        self.size = 0
        self.mtime = 0.0
        self.epoch = 0

    @property
    def behind(self) -> int:
        """Bytes that were there at the last look and have not been read, including a torn last line."""
        return self.size - self._offset

    def lines(self) -> list[bytes]:
        """Reads the next lines, at most one bite. Empty if there are no more at present."""
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return []
        with stream:
            status = os.fstat(stream.fileno())
            if self._inode is not None and (status.st_ino != self._inode or status.st_size < self._offset):
                self._offset, self._inside_a_monster = 0, False
                self.epoch += 1
            self._inode, self.size, self.mtime = status.st_ino, status.st_size, status.st_mtime
            stream.seek(self._offset)
            data = stream.read(self._bite)
        return self._split(data)

    def records(self) -> list[dict[str, Any]]:
        """Reads all records that were completed since the last call, in as many bites as necessary."""
        found: list[dict[str, Any]] = []
        offset = -1
        while offset != self._offset:
            offset = self._offset
            found += [record for line in self.lines() if (record := record_of(line)) is not None]
        return found

    def _split(self, data: bytes) -> list[bytes]:
        end = data.rfind(b"\n") + 1
        if not end and len(data) == self._bite:
            self._offset += len(data)
            self._inside_a_monster = True
            return []
        self._offset += end
        lines = data[:end].split(b"\n")[:-1]
        if lines and self._inside_a_monster:
            self._inside_a_monster = False
            lines = lines[1:]
        return lines


def record_of(line: bytes) -> dict[str, Any] | None:
    """Parses a line as a record. None if it is not one, e.g. torn by a crash of the node that wrote it."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
