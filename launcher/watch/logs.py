"""Implements `verst logs`: prints the logs of all processes of a run, merged by the time in front of their lines.

Each line stands after the name of its process.
"""

from __future__ import annotations

import contextlib
import heapq
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from verst.launcher.recipe.faults import UserError, nearest
from verst.launcher.runs.open import open_run
from verst.launcher.watch.log_files import GrowingLog, log_files, piece_bytes
from verst.launcher.watch.log_times import moment, parse_since, timed
from verst.runtime.run.folder import RunFolder

_POLL_S = 0.5
_LIST_S = 5.0  # between two searches for new files
_REST = 10  # a pause is this many times as long as the poll before it, so many files are polled less often

Line = tuple[str, str, str]  # time, process, text


@dataclass
class Wanted:
    """Which lines to print."""

    life: int | None = None  # None: the present one
    process: str | None = None
    grep: str | None = None
    since: str | None = None
    tail: int | None = None
    _pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        try:
            self._pattern = re.compile(self.grep or "")
        except re.error as error:
            raise UserError(f"--grep {self.grep!r} is not a regular expression: {error}") from error
        self.since = None if self.since is None else parse_since(self.since)

    def __contains__(self, line: Line) -> bool:
        return (self.since is None or line[0] >= self.since) and bool(self._pattern.search(line[2]))


def print_logs(run_dir: Path, follow: bool, wanted: Wanted) -> int:
    """Prints the existing log lines and, with `follow`, new ones until Ctrl-C. Returns the exit code."""
    folder = open_run(run_dir, or_app=True)
    names = _names(folder, wanted, follow)
    logs = {path: GrowingLog(path, piece_bytes(len(names))) for path in names}
    lines = (line for line in _earlier(logs, names, wanted) if line in wanted)
    for _, name, text in lines if wanted.tail is None else deque(lines, wanted.tail):
        print(f"{name} | {text}")
    if not follow:
        return 0
    with contextlib.suppress(KeyboardInterrupt):
        _follow(folder, logs, names, wanted)
    return 0


def _names(folder: RunFolder, wanted: Wanted, follow: bool) -> dict[Path, str]:
    """The logs to read, each with its process's name. Raises UserError for a life or a process that is not there."""
    life = wanted.life
    if life is not None and not 0 <= life <= folder.generation:
        known = f"lives 0 to {folder.generation}" if folder.generation else "only life 0"
        raise UserError(f"{folder.root} has had {known}: there is no life {life}")
    names = log_files(folder, life)
    if wanted.process is None:
        return names
    found = {path: name for path, name in names.items() if name == wanted.process}
    if not found and not follow:
        shown = folder.generation if life is None else life
        hint = nearest(wanted.process, set(names.values()))
        raise UserError(f"no process {wanted.process!r} in life {shown}.{hint}")
    return found


def _earlier(logs: dict[Path, GrowingLog], names: dict[Path, str], wanted: Wanted) -> Iterator[Line]:
    """The lines that are there, merged by time. Of equal times, those of a process stay together."""
    since = None if wanted.since is None else moment(wanted.since)
    old = {path for path in logs if since is not None and path.stat().st_mtime < since}
    for path in old:
        logs[path].skip()
    reads = [
        _lines_of(log, names[path], None if wanted.grep or wanted.since else wanted.tail)
        for path, log in sorted(logs.items(), key=lambda item: names[item[0]])
        if path not in old
    ]
    return heapq.merge(*reads, key=lambda line: line[0])


def _lines_of(log: GrowingLog, name: str, last: int | None) -> Iterator[Line]:
    """A log's lines in an order of time that never goes back, so that logs can be merged. `last`: only so many."""
    latest = ""
    for stamp, text in timed(log.lines() if last is None else log.last(last)):
        latest = max(latest, stamp)
        yield latest, name, text


def _follow(folder: RunFolder, logs: dict[Path, GrowingLog], names: dict[Path, str], wanted: Wanted) -> None:
    """Prints the lines that appear, until Ctrl-C. Each look's lines are in order of time."""
    listed = time.monotonic()
    latest: dict[Path, str] = {}
    while True:
        time.sleep(_POLL_S)
        began = time.monotonic()
        if began - listed >= _LIST_S:
            names, listed = names | _names(folder, wanted, follow=True), began
        found: list[Line] = []
        for path, name in names.items():
            log = logs.setdefault(path, GrowingLog(path, piece_bytes(len(names))))
            for stamp, text in timed(log.lines(), latest.get(path, "")):
                latest[path] = max(latest.get(path, ""), stamp)
                found.append((latest[path], name, text))
        for line in sorted(found, key=lambda line: line[0]):
            if line in wanted:
                print(f"{line[1]} | {line[2]}", flush=True)
        time.sleep(max(0.0, _REST * (time.monotonic() - began) - _POLL_S))
