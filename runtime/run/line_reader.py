"""Follows metrics.jsonl, events.jsonl and their like while they grow.

In bounded bites for who must answer meanwhile: a day's metrics are many megabytes, and a page is waiting.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

BITE = 4 << 20


class LineReader:
    """Whole lines appended to a file that may not exist yet; a half-written last line waits.

    `epoch` counts how often the file was replaced or cut short: what was read before counts no more.
    """

    def __init__(self, path: Path, bite: int = BITE) -> None:
        self._path = path
        self._bite = bite
        self._offset = 0
        self._inode: int | None = None
        self._inside_a_monster = False  # behind the beginning of a line longer than a bite, which is dropped
        self.size = 0
        self.mtime = 0.0
        self.epoch = 0

    @property
    def behind(self) -> int:
        """Bytes that were there at the last look and are not read, a torn last line among them."""
        return self.size - self._offset

    def lines(self) -> list[bytes]:
        """The next lines, at most a bite of them; empty when there are no more for now."""
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
        """All records that were completed since the last call, however many bites they are."""
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
    """A line as a record; None for what a crash of its node left of one."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
