"""Spans of time: what this process did when, one JSON line each, in a file of its own below `traces/attempt-N/`.

The first line of a life says whose file it is: {"process", "group", "node", "host", "generation"}. Each further
line is a span: {"name", "lane", "ts", "dur", "version", …} with `ts` the wall clock's seconds since 1970 when it
began, `dur` seconds by the monotonic clock, and `version` the number of the step that it belongs to (warm-start
steps counted). Spans of one lane do not overlap unless one is inside the other; lane "" may hold any.

Bounded in cost: spans are buffered and written with one system call when a step ends, or when the oldest has
waited for ten seconds. A file that cannot be written switches traces off in this process and hurts nothing else.
`verst trace` merges the files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger(__name__)
_WAIT_S = 10.0
_MOST = 2000  # spans kept between two writes; beyond them they are counted and left out


class Tracer:
    """One process's spans. Not for several threads at once."""

    def __init__(self, path: Path | None, about: dict[str, Any] | None = None) -> None:
        """`path` None: records nothing. `about` is the first line."""
        self._path = path
        self._about = about
        self._lines: list[dict[str, Any]] = []
        self._left_out = 0
        self._fd: int | None = None
        self._flushed = time.monotonic()

    @contextlib.contextmanager
    def span(self, name: str, *, lane: str = "", **about: Any) -> Iterator[dict[str, Any]]:
        """Records the body as a span, also when it raises; more can be said about it in the yielded dict."""
        began = time.monotonic()
        try:
            yield about
        finally:
            self.add(name, began, time.monotonic(), lane=lane, **about)

    def add(self, name: str, began: float, ended: float, *, lane: str = "", **about: Any) -> None:
        """A span between two moments of the monotonic clock."""
        if self._path is None:
            return
        now = time.monotonic()
        if len(self._lines) >= _MOST:
            self._left_out += 1
            return
        ts = round(time.time() - (now - began), 6)
        self._lines.append({"name": name, "lane": lane, "ts": ts, "dur": round(ended - began, 6), **about})
        if now - self._flushed > _WAIT_S:
            self.flush()

    def flush(self) -> None:
        """Writes what is buffered, with one call."""
        self._flushed = time.monotonic()
        if self._path is None or not self._lines:
            return
        if self._left_out:
            self._lines.append({"left_out": self._left_out})
        lines = [self._about, *self._lines] if self._about else self._lines
        data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        self._about, self._lines, self._left_out = None, [], 0
        try:
            if self._fd is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            if os.write(self._fd, data) < len(data):
                raise OSError(f"only a part of {len(data)} bytes could be written")
        except OSError as error:
            log.warning("no traces any more: %s: %s", self._path, error)
            self._path = None

    def close(self) -> None:
        """Writes the rest and closes the file."""
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._path = None


NO_TRACE = Tracer(None)
