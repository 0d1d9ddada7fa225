"""Implements `verst trace`: merges the spans of all processes of a run into one trace in Chrome's format.

ui.perfetto.dev and chrome://tracing open such a file. Each node of a group is a "process" in it, and each
process of the run a "thread" of its node. Lanes and overlapping spans get threads of their own (an engine
works on many groups at once). Arrows follow a step from its last group through training to the round that
sends the new weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run
from verst.launcher.watch.trace_clocks import Moment, clock_offsets
from verst.runtime.run.folder import RunFolder

_TICK_S = 2e-6  # tolerance: the trace files round times to microseconds
_OWN = {"name", "lane", "ts", "dur", "version", "parts"}


@dataclass
class Span:
    """One span: a line of a trace file."""

    process: str
    node: str  # "trainer/0"
    host: str
    life: int
    name: str
    lane: str
    began: float  # seconds since 1970
    seconds: float
    version: int
    parts: dict[
        str, float
    ]  # the seconds of each part of the span; the parts follow one another from `began` on
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> float:
        """The end of the span, in seconds since 1970."""
        return self.began + self.seconds

    @property
    def step(self) -> int:
        """The step that it belongs to. What is done with weight version 6 belongs to step 7, which makes version 7."""
        return self.version + 1


def write_trace(run_dir: Path, steps: str | None, out: Path) -> int:
    """Implements `verst trace`: merges the trace files of a run into `out`. Returns the exit code.

    Raises UserError when there are no spans, or none in `steps`.
    """
    folder = open_run(run_dir)
    _refuse_place(out)  # here, because reading the traces may take a while
    spans = list(read_spans(folder))
    if not spans:
        raise UserError(f"{folder.root} has no traces: metrics.traces is off, or no step has finished yet")
    for host, offset in correct_clocks(spans).items():
        if offset:
            print(
                f"the clock of {host} is wrong by at least {abs(offset):.3f} s: its spans are shifted by that",
                file=sys.stderr,
            )
    place_groups(spans)
    first, last = parse_steps(steps)
    chosen = [span for span in spans if first <= span.step <= last]
    if not chosen:
        known = sorted({span.step for span in spans})
        raise UserError(f"--steps {steps}: no such steps; the traces cover steps {known[0]} to {known[-1]}")
    out.write_text(json.dumps({"traceEvents": chrome_events(chosen), "displayTimeUnit": "ms"}))
    print(f"wrote {out}: {len(chosen)} spans of {len({(s.node, s.process) for s in chosen})} processes")
    print("open it at https://ui.perfetto.dev (nothing is uploaded) or in chrome://tracing")
    return 0


def _refuse_place(out: Path) -> None:
    """Raises UserError when no file can be written at `out`."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder, must be a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")


def parse_steps(text: str | None) -> tuple[float, float]:
    """Parses a range of steps: "10:12" is (10, 12), both included. None is all steps. Raises UserError.

    "10" is one step, ":12" all steps up to 12, and "10:" all from 10 on.
    """
    if text is None:
        return float("-inf"), float("inf")
    first, colon, last = text.partition(":")
    try:
        low = float(int(first)) if first else float("-inf")
        high = (float(int(last)) if last else float("inf")) if colon else low
    except ValueError:
        raise UserError(
            f"--steps {text!r} must be a step or a range like 10:12, counted as in metrics.jsonl"
        ) from None
    return low, high


def read_spans(folder: RunFolder) -> Iterator[Span]:
    """Reads all spans of all processes and lives, as they were written."""
    for path in sorted(folder.traces.glob("life-*/*.jsonl")):
        about: dict[str, Any] = {}
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # incomplete, because its node crashed
                    continue
                if "process" in record:
                    about = record
                elif "name" in record and about:
                    yield _span(about, record)


def _span(about: dict[str, Any], record: dict[str, Any]) -> Span:
    return Span(
        process=about["process"],
        node=f"{about['group']}/{about['node']}",
        host=about["host"],
        life=about["generation"],
        name=record["name"],
        lane=record["lane"],
        began=record["ts"],
        seconds=record["dur"],
        version=record.get("version", -1),
        parts=record.get("parts") or {},
        about={key: value for key, value in record.items() if key not in _OWN},
    )


def correct_clocks(spans: list[Span]) -> dict[str, float]:
    """Shifts the spans of hosts whose clocks are known to be wrong. Returns the shift in seconds by host."""
    controllers = [span.host for span in spans if span.process.startswith("controller")]
    if not controllers:
        return {}
    moments = [Moment(s.host, s.life, s.version, s.name, s.began, s.ended) for s in spans]
    offsets = dict(clock_offsets(moments, controllers[-1]))
    for span in spans:
        span.began += offsets.get(span.host, 0.0)
    return offsets


def place_groups(spans: Iterable[Span]) -> None:
    """Sets the version of each group's span to that of the step that trained on the group, if it is known."""
    spans = list(spans)
    trained = {
        group: span.version
        for span in spans
        if span.name == "train"
        for group in span.about.get("groups", ())
    }
    for span in spans:
        if span.name == "group":
            span.version = trained.get(span.about["group"], span.version)


def chrome_events(spans: list[Span]) -> list[dict[str, Any]]:
    """The events of the Chrome trace. Times are in microseconds since the first span."""
    start = min(span.began for span in spans)
    lives = len({span.life for span in spans}) > 1
    events: list[dict[str, Any]] = []
    pids: dict[str, int] = {}
    tids: dict[tuple[int, str], int] = {}
    drawn: list[tuple[Span, int, int]] = []
    for span, row in in_rows(spans):
        node = f"{span.node} ({span.host})" + (f", life {span.life}" if lives else "")
        if node not in pids:
            pids[node] = len(pids) + 1
            events.append(_name("process_name", pids[node], 0, node))
        pid = pids[node]
        thread = " ".join(filter(None, [span.process, span.lane, f"#{row}" if row else ""]))
        if (pid, thread) not in tids:
            tids[pid, thread] = len(tids) + 1
            events.append(_name("thread_name", pid, tids[pid, thread], thread))
        tid = tids[pid, thread]
        drawn.append((span, pid, tid))
        events += _slices(span, pid, tid, start)
    return [*events, *_arrows(drawn, start)]


def in_rows(spans: list[Span]) -> Iterator[tuple[Span, int]]:
    """Assigns each span to a row of its lane. Yields (span, row) in order of time.

    Two spans of a row either do not overlap, or one lies inside the other.
    """
    open_ends: dict[tuple[str, int, str, str], list[list[float]]] = {}
    for span in sorted(spans, key=lambda s: (s.began, -s.seconds)):
        rows = open_ends.setdefault((span.node, span.life, span.process, span.lane), [])
        for ends in rows:
            while ends and ends[-1] <= span.began + _TICK_S:
                ends.pop()
        free = (n for n, ends in enumerate(rows) if not ends or span.ended <= ends[-1])
        number = next(free, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(span.ended)
        yield span, number


def _slices(span: Span, pid: int, tid: int, start: float) -> Iterator[dict[str, Any]]:
    args = {"step": span.step, **span.about}
    name = f"group {span.about['group']}" if span.name == "group" else span.name
    common = {"ph": "X", "cat": "verst", "pid": pid, "tid": tid}
    ts = (span.began - start) * 1e6
    yield {**common, "name": name, "ts": ts, "dur": span.seconds * 1e6, "args": args}
    for part, seconds in span.parts.items():
        yield {**common, "name": part, "ts": ts, "dur": seconds * 1e6, "args": {}}
        ts += seconds * 1e6


def _arrows(drawn: list[tuple[Span, int, int]], start: float) -> Iterator[dict[str, Any]]:
    """Yields each step's arrows as flow events of the Chrome trace.

    They lead from the step's last group to its training, on the controller and the first rank, and to its
    weight round.
    """
    stations: dict[int, dict[str, tuple[float, int, int]]] = {}

    def pass_by(version: int, station: str, at: float, pid: int, tid: int, last: bool = False) -> None:
        known = stations.setdefault(version, {}).get(station)
        if known is None or (at > known[0] if last else at < known[0]):
            stations[version][station] = (at, pid, tid)

    for span, pid, tid in drawn:
        if span.name == "group" and span.about.get("kept"):
            pass_by(span.version, "group", span.began, pid, tid, last=True)
        elif span.name == "train":
            pass_by(span.version, "train", span.began, pid, tid)
        elif span.name == "forward_backward":
            pass_by(span.version, "forward_backward", span.began, pid, tid)
        elif span.name == "weight_sync":
            pass_by(span.version - 1, "weight_sync", span.began, pid, tid)
    for version, stops in sorted(stations.items()):
        path = sorted(stops.values())
        if len(path) < 2:
            continue
        for number, (at, pid, tid) in enumerate(path):
            phase = "s" if number == 0 else "f" if number == len(path) - 1 else "t"
            flow = {"ph": phase, "cat": "step", "name": f"step {version + 1}", "id": version + 1}
            yield {**flow, "ts": (at - start) * 1e6, "pid": pid, "tid": tid, "bp": "e"}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
