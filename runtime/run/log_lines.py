"""Log lines that carry the time, and logs that stay below a size.

Every process of a run writes stdout and stderr to a file of its own (`supervise.start`). What Python writes there,
once it has imported its modules, gets the time in front of each line; what C and C++ write (NCCL's or glibc's last
words) goes past that and stands as it came, so a line without a time is about as old as its neighbours.

A log that has grown beyond its limit is set aside by its node agent: copied to NAME.log.1, the older ones moved
on, and emptied. The writers append (O_APPEND), so they need not know; a line written within the microseconds
between the last copied byte and the emptying is lost.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from pathlib import Path
from typing import TextIO

_CHUNK = 1 << 20
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ")
_second: tuple[int, str] = (0, "")


def stamp() -> str:
    """The local time in front of a line: "2026-05-01 12:00:00.123 "."""
    global _second
    now = time.time()
    if _second[0] != int(now):
        _second = int(now), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return f"{_second[1]}.{int(now % 1 * 1000):03d} "


def without_stamp(line: str) -> str:
    """A log's line as it was said."""
    return _STAMP.sub("", line)


class StampedStream(io.TextIOWrapper):
    """A text stream that begins each line with the time."""

    _at_start = True

    def write(self, text: str, /) -> int:
        """Writes text; a line may come in pieces."""
        if not text:
            return 0
        now = stamp()
        body = text[:-1] if text.endswith("\n") else text
        lines = body.replace("\n", "\n" + now)
        super().write((now if self._at_start else "") + lines + text[len(body) :])
        self._at_start = text.endswith("\n")
        return len(text)


def stamp_output() -> None:
    """From now on what this process writes to `sys.stdout` and `sys.stderr` carries the time."""
    for name in ("stdout", "stderr"):
        stream = _stamped(getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _stamped(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, StampedStream):
        return stream
    stream.flush()
    encoding, errors = stream.encoding, stream.errors
    return StampedStream(stream.detach(), encoding, errors, line_buffering=True, write_through=True)


def set_aside(log: Path, max_bytes: int, keep: int) -> bool:
    """Sets a log aside when it is larger than `max_bytes`. On a full disk it stays, and OSError is raised."""
    if os.stat(log).st_size <= max_bytes:
        return False
    for number in range(keep - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(aside(log, number), aside(log, number + 1))
    fd = os.open(log, os.O_RDWR)
    try:
        copy = os.open(aside(log, 1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            while os.sendfile(copy, fd, None, _CHUNK):
                pass
            os.ftruncate(fd, 0)
        finally:
            os.close(copy)
    except OSError:
        aside(log, 1).unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return True


def aside(log: Path, number: int) -> Path:
    """The log that was set aside `number` times ago."""
    return log.with_name(f"{log.name}.{number}")
