"""Puts the time in front of log lines, and keeps logs below a size.

Every process of a run writes stdout and stderr to its own file (`supervise.start`). Lines that Python writes
there, once it has imported its modules, begin with the time. Lines from C and C++ (NCCL's or glibc's last
words) bypass that and have no time; they are about as old as their neighbours.

The node agent sets a log aside that has grown beyond its limit: it renames the older ones, copies the log to
NAME.log.1 and empties it. The writing processes append (O_APPEND), so they need not know. A line that is
written in the microseconds between the last copied byte and the emptying is lost.
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
    """The local time as it stands in front of a line: "2026-05-01 12:00:00.123 "."""
    global _second
    now = time.time()
    if _second[0] != int(now):
        _second = int(now), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    return f"{_second[1]}.{int(now % 1 * 1000):03d} "


def without_stamp(line: str) -> str:
    """A log line without the time in front."""
    return _STAMP.sub("", line)


class StampedStream(io.TextIOWrapper):
    """A text stream that begins each line with the time."""

    _at_start = True

    def write(self, text: str, /) -> int:
        """Writes text. A line may come in pieces."""
        if not text:
            return 0
        now = stamp()
        body = text[:-1] if text.endswith("\n") else text
        lines = body.replace("\n", "\n" + now)
        super().write((now if self._at_start else "") + lines + text[len(body) :])
        self._at_start = text.endswith("\n")
        return len(text)


def stamp_output() -> None:
    """Makes all lines that this process writes to `sys.stdout` and `sys.stderr` begin with the time."""
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
    """Sets a log aside if it is larger than `max_bytes`. Keeps `keep` earlier ones. Returns whether it did.

    On a full disk, raises OSError and leaves the log as it is.
    """
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
    """The path of the log that was set aside as the `number`-th last (1: the latest)."""
    return log.with_name(f"{log.name}.{number}")
