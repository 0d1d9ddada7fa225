"""Which process of a life of a run failed first, from the events that its node agents wrote.

Each agent says when it noticed (`at`) and whether the end looks like the echo of another's (`echo`, see
`runtime/run/blame.py`). The first failure is the earliest that is no echo; times of several nodes are compared as their
clocks have them, so between nodes that failed within their clocks' difference of each other it may be the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader

_LINES = 10
_AFTER = 8


@dataclass(frozen=True)
class Failure:
    """One process that failed."""

    process: str
    node: str
    reason: str
    at: float
    echo: bool
    lines: list[str]


def failures(folder: RunFolder, generation: int) -> list[Failure]:
    """The failures of a life of the run, the cause before what followed from it."""
    events = LineReader(folder.events).records()
    of_life = [e for e in events if e["kind"] == "process_failed" and e["generation"] == generation]
    return sorted(map(_failure, of_life), key=lambda f: (f.echo, f.at))


def restarts(folder: RunFolder, generation: int) -> list[Failure]:
    """The failures of a life of the run that were answered by a restart, in the order of time."""
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
    """What `verst status` says about them."""
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
        said.append(f"and {len(others) - _AFTER} more: events.jsonl has them")
    return said


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
