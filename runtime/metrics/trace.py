"""Records what this process does and when, as spans of time. `verst trace` merges the files of all processes.

Each process writes its own file in `traces/life-N/`, with one JSON line for each span. The first line of a
life names the process: {"process", "group", "node", "host", "generation"}. Each further line is a span:
{"name", "lane", "ts", "dur", "version", …}. `ts` is when it began, in seconds since 1970 by the wall clock.
`dur` is in seconds by the monotonic clock. `version` is the weight version that it works with; it belongs to
step `version` + 1, which makes the next version. Spans of one lane do not overlap unless one is inside the
other; lane "" may hold any spans.

The cost is bounded: spans are buffered and written with one system call when a step ends, or when ten seconds
have passed since the last write. If the file cannot be written, this process stops tracing, and nothing else
is affected.
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
_MOST = 2000  # spans kept between two writes; further ones are only counted


class Tracer:
    """Records the spans of one process. Not thread-safe."""

    def __init__(self, path: Path | None, about: dict[str, Any] | None = None) -> None:
        """`path`: the file; None to record nothing. `about`: the first line of the file."""
        self._path = path
        self._about = about
        self._lines: list[dict[str, Any]] = []
        self._left_out = 0
        self._fd: int | None = None
        self._flushed = time.monotonic()

    @contextlib.contextmanager
    def span(self, name: str, *, lane: str = "", **about: Any) -> Iterator[dict[str, Any]]:
        """Records the body of a `with` as a span, even if it raises. Add fields to the yielded dict."""
        began = time.monotonic()
        try:
            yield about
        finally:
            self.add(name, began, time.monotonic(), lane=lane, **about)

    def add(self, name: str, began: float, ended: float, *, lane: str = "", **about: Any) -> None:
        """Records a span between two moments of the monotonic clock."""
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
        """Writes the buffered spans with one call."""
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
            log.warning("tracing stops in this process: %s: %s", self._path, error)
            self._path = None

    def close(self) -> None:
        """Writes the remaining spans and closes the file."""
        self.flush()
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._path = None


NO_TRACE = Tracer(None)
