"""Passes a run's figures on to metric trackers, without ever delaying the run.

The controller itself always writes metrics.jsonl. Each tracker that the recipe asks for has its own queue and
its own thread, in which its package is also imported. A tracker that fails, or falls a thousand records
behind, is switched off, with one event that says why. The run and the other trackers are not affected.
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
    """One tracker. It is called in one thread, and any exception that it raises switches it off."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the figures of a step, by name ("reward", "seconds/train", "eval/math/reward")."""

    def close(self) -> None:
        """Finishes: no more figures come."""


def figures(record: Record) -> tuple[int, dict[str, float]] | None:
    """The step and the numbers of a line of metrics.jsonl. None for lines that trackers do not get."""
    kind = record["kind"]
    if kind not in ("step", "eval", "stage_step", "stage_eval"):
        return None
    values: dict[str, float] = {}
    sections = {"step": "", "stage_step": str(record.get("stage")), "stage_eval": "eval"}
    section = sections.get(kind, f"eval/{record.get('set')}")
    for name, value in record.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        for part, number in inner.items():
            if isinstance(number, int | float) and name not in ("step", "time"):
                path = "/".join(filter(None, [section, name, part]))
                values[path] = float(number)
    return int(record["step"]), values


class MetricSinks:
    """Runs the trackers. `makers`, by tracker name, are called in the tracker's thread."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]], tell: Callable[[str], None]) -> None:
        """`tell` is called, from any thread, with the message about a tracker that was switched off."""
        self._feeds = [_Feed(name, maker, tell) for name, maker in makers.items()]

    def write(self, record: Record) -> None:
        """Hands a line of metrics.jsonl to every tracker and returns at once."""
        if self._feeds and (found := figures(record)) is not None:
            for feed in self._feeds:
                feed.put(found)

    def close(self, timeout_s: float) -> None:
        """Lets the trackers finish, for at most `timeout_s` seconds."""
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
        except BaseException as error:  # packages raise anything, even SystemExit; `_tell` reports it
            self._switch_off(f"{type(error).__name__}: {error}")

    def _switch_off(self, why: str) -> None:
        if self._off.acquire(blocking=False):
            self._tell(f"metrics.{self._name} is off from here on: {why}")
