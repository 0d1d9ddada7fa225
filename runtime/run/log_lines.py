"""Puts the time in front of log lines, and keeps logs below a size.

Every process of a run writes stdout and stderr to its own file (`supervise.start`). Lines that Python writes
there, once it has imported its modules, begin with the time, and arrive whole: each line is written at once, so
that lines of several threads, and of several processes with one log, do not mix. Lines from C and C++ (NCCL's or
glibc's last words) bypass that and have no time; they are about as old as their neighbours.

The node agent sets a log aside that has grown beyond its limit: it renames the older ones, copies the log to
NAME.log.1 and empties it. The writing processes append (O_APPEND), so they need not know. A line that is
written in the microseconds between the last copied byte and the emptying is lost.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import threading
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
    """A text stream that begins each line with the time and writes it whole.

    `print` writes a line in pieces (each argument, then the line break). Each thread's pieces are kept until the line
    ends or the stream is flushed.
    """

    def __init__(self, stream: TextIO) -> None:
        """Writes to the file of `stream`, which stays usable: log handlers may hold it."""
        raw = open(stream.fileno(), "wb", closefd=False)  # noqa: SIM115  # as long as the process lives
        super().__init__(raw, stream.encoding, stream.errors, line_buffering=True)
        self._pieces: dict[int, str] = {}  # by thread: the beginning of its line
        self._open_lines: set[int] = set()  # threads whose line was flushed before its end
        self._lock = threading.RLock()  # a finaliser or a signal's handler may print during a write
        os.register_at_fork(after_in_child=self._forget_threads)

    def write(self, text: str, /) -> int:
        """Takes text, and writes the lines that it completes."""
        me = threading.get_ident()
        with self._lock:
            lines, end, rest = (self._pieces.pop(me, "") + text).rpartition("\n")
            if rest:
                self._pieces[me] = rest
            if end:
                self._write_now(me, lines + end)
        return len(text)

    def flush(self) -> None:
        """Also writes this thread's line as far as it has come."""
        with self._lock:
            if rest := self._pieces.pop(threading.get_ident(), ""):
                self._write_now(threading.get_ident(), rest)
            super().flush()

    def _write_now(self, thread: int, text: str) -> None:
        now = stamp()
        body = text[:-1] if text.endswith("\n") else text
        first = "" if thread in self._open_lines else now
        super().write(first + body.replace("\n", "\n" + now) + text[len(body) :])
        super().flush()
        (self._open_lines.discard if text.endswith("\n") else self._open_lines.add)(thread)

    def _forget_threads(self) -> None:
        """In a fork: other threads, and their half lines, do not exist; one of them may have held the lock."""
        self._lock = threading.RLock()
        self._pieces.clear()


def stamp_output() -> None:
    """Makes all lines that this process writes to `sys.stdout` and `sys.stderr` begin with the time.

    Log handlers that libraries made at their import (transformers) held the plain streams; they get the new ones.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or isinstance(stream, StampedStream):
            continue
        stream.flush()
        stamped = StampedStream(stream)
        for handler in _log_handlers():
            if (
                vars(handler).get("stream") is stream
            ):  # those of `logging` itself look sys.stderr up each time
                handler.setStream(stamped)
        setattr(sys, name, stamped)
        setattr(sys, f"__{name}__", stamped)


def _log_handlers() -> list[logging.StreamHandler[TextIO]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = [handler for logger in loggers for handler in getattr(logger, "handlers", [])]
    return [handler for handler in found if isinstance(handler, logging.StreamHandler)]


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
