"""Finds which process of a life of the run failed first, from the events that the node agents wrote.

An event has the time at which the agent noticed the failure (`at`), and whether it looks like the consequence
of another failure (`echo`, see `runtime/run/blame.py`). The first failure is the earliest that is no echo.
Times of several nodes are compared without correcting their clocks, so for failures closer together than the
clocks' difference the order may be wrong.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader

_LINES = 10  # log lines shown of the first failure
_AFTER = 8  # further failures shown


@dataclass(frozen=True)
class Failure:
    """The failure of one process."""

    process: str
    node: str  # "trainer/0"
    reason: str
    at: float  # seconds since 1970, by the clock of its node
    echo: bool  # it looks like the consequence of another failure
    lines: list[str]  # the last ones of its log


def failures(folder: RunFolder, generation: int) -> list[Failure]:
    """The failures of a life of the run: causes before consequences, each in order of time."""
    events = LineReader(folder.events).records()
    of_life = [e for e in events if e["kind"] == "process_failed" and e["generation"] == generation]
    return sorted(map(_failure, of_life), key=lambda f: (f.echo, f.at))


def restarts(folder: RunFolder, generation: int) -> list[Failure]:
    """The failures of a life of the run after which the process was restarted, in order of time."""
    events = LineReader(folder.events).records()
    return [
        Failure(
            process=event["process"],
            node=f"{event.get('group')}/{event.get('node')}",
            reason=f"{event['process']} on node {event.get('group')}/{event.get('node')} failed: "
            f"{event['ending']}; restart {event['restart']}",
            at=event["time"],
            echo=False,
            lines=list(event.get("lines") or []),
        )
        for event in events
        if event["kind"] == "process_restarted" and event["generation"] == generation
    ]


def _failure(event: dict[str, Any]) -> Failure:
    return Failure(
        process=event.get("process") or event["reason"].partition(" ")[0],
        node=f"{event.get('group')}/{event.get('node')}",
        reason=event["reason"],
        at=event.get("at", event["time"]),
        echo=event.get("echo", False),
        lines=list(event.get("lines") or []),
    )


def tell_failures(found: list[Failure]) -> list[str]:
    """Formats failures for `verst status`, as lines of text."""
    if not found:
        return []
    first, *others = found
    said = [f"failed first: {first.reason} ({_clock(first.at)})"]
    said += [f"  | {line}" for line in first.lines[-_LINES:]]
    for other in others[:_AFTER]:
        kind = "as a consequence" if other.echo else "also"
        last = next((line for line in reversed(other.lines) if line.strip()), "")
        said.append(f"{kind}, {other.at - first.at:+.1f} s: {other.reason}" + (f": {last}" if last else ""))
    if len(others) > _AFTER:
        said.append(f"and {len(others) - _AFTER} more, listed in events.jsonl")
    return said


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
