"""Passes a run's figures on to metric trackers, without ever being waited for.

metrics.jsonl is written by the controller itself, always. Each tracker that the recipe asks for has a thread and a
queue of its own, in which its package is also imported. One that fails, or falls a thousand records behind, is
switched off with one event that says why; the run and the other trackers do not notice.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

log = logging.getLogger(__name__)
_BEHIND = 1000  # records

Record = Mapping[str, Any]


class Sink(Protocol):
    """One tracker. Called in one thread; whatever it raises switches it off."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes figures of a step, by name ("reward", "seconds/train", "eval/score")."""

    def close(self) -> None:
        """Nothing more comes."""


def figures(record: Record) -> tuple[int, dict[str, float]] | None:
    """The numbers of a line of metrics.jsonl and their step; None for kinds that trackers do not get."""
    kind = record["kind"]
    if kind not in ("step", "eval"):
        return None
    values: dict[str, float] = {}
    for name, value in record.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        for part, number in inner.items():
            if isinstance(number, int | float) and name not in ("step", "time"):
                path = "/".join(filter(None, ["eval" if kind == "eval" else "", name, part]))
                values[path] = float(number)
    return int(record["step"]), values


class MetricSinks:
    """Trackers by name, each made by a function that is called in its thread."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]], tell: Callable[[str], None]) -> None:
        """`tell` gets the message of a tracker that is switched off, from any thread."""
        self._feeds = [_Feed(name, maker, tell) for name, maker in makers.items()]

    def write(self, record: Record) -> None:
        """Hands a line of metrics.jsonl to every tracker and returns at once."""
        if self._feeds and (found := figures(record)) is not None:
            for feed in self._feeds:
                feed.put(found)

    def close(self, timeout_s: float) -> None:
        """Lets the trackers finish, for at most so long."""
        deadline = time.monotonic() + timeout_s
        for feed in self._feeds:
            feed.put(None)
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()))


class _Feed:
    """One tracker's queue and thread."""

    def __init__(self, name: str, maker: Callable[[], Sink], tell: Callable[[str], None]) -> None:
        self._name, self._maker, self._tell = name, maker, tell
        self._waiting: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(_BEHIND)
        self._off = threading.Lock()  # held once it is switched off
        self._thread = threading.Thread(target=self._run, name=f"metrics.{name}", daemon=True)
        self._thread.start()

    def put(self, item: tuple[int, dict[str, float]] | None) -> None:
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._switch_off(f"it is {_BEHIND} records behind")

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._thread.is_alive() and not self._off.locked():
            self._switch_off("it did not finish in time: its last figures may be missing")

    def _run(self) -> None:
        try:
            sink = self._maker()
            while (item := self._waiting.get()) is not None and not self._off.locked():
                sink.write(*item)
            sink.close()
        except BaseException as error:  # packages raise anything, SystemExit included; `_tell` makes it known
            self._switch_off(f"{type(error).__name__}: {error}")

    def _switch_off(self, why: str) -> None:
        if self._off.acquire(blocking=False):
            self._tell(f"metrics.{self._name} is off from here on: {why}")
