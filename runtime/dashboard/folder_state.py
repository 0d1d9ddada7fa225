"""Follows the files of a run folder and keeps the data that the page asks for."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import yaml

from verst.runtime.dashboard.bottleneck import find_bottleneck
from verst.runtime.dashboard.columns import HISTOGRAM, Columns
from verst.runtime.dashboard.lives import Lives
from verst.runtime.dashboard.processes import Processes
from verst.runtime.dashboard.run_state import StateReader
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader, record_of
from verst.runtime.run.planned_steps import planned_steps

KINDS = ("step", "eval", "stage_step", "stage_eval", "sync", "checkpoint")
PAGE = 2000  # records of one kind in an answer
EVENTS_PAGE = 500
_EVENTS_KEPT = 5000
_RECENT = 20  # steps in which to look for the bottleneck
_READ_S = 0.5  # time to read for one answer
_AGAIN_S = 0.25  # pages that ask within this time share one reading
_PROGRESS = b'"kind":"rollout_progress"'  # most lines of metrics.jsonl; only the last matters


class FolderState:
    """The data of one run folder. Not thread-safe."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.processes = Processes(folder)
        self._state = StateReader(folder)
        self._metrics = LineReader(folder.metrics)
        self._events = LineReader(folder.events)
        self._looked = 0.0
        self._in_arrears = False  # there is more to read now
        self._recipe = _Recipe(folder)
        self._forget()

    def _forget(self) -> None:
        self.series = {kind: Columns() for kind in KINDS}
        self.events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self.events_seen = 0
        self._progress: bytes | None = None
        self._groups: dict[str, int] | None = None
        self._recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self.lives = Lives(self.folder)
        self._steps_done = 0
        self._rewards: dict[str, dict[str, Any]] = {}  # histograms of the "first" and the "last" step
        self._synced: tuple[int, frozenset[int]] | None = None
        self._behind: dict[int, int] = {}  # engines that missed the last weights -> their version
        self._times: list[float] = []

    @property
    def epoch(self) -> str:
        """Changes when a file is replaced: the data that a page has is then invalid."""
        return f"{self._metrics.epoch}.{self._events.epoch}"

    @property
    def behind(self) -> int:
        """The bytes of metrics.jsonl that are not read yet."""
        return self._metrics.behind

    def update(self) -> None:
        """Reads the lines written since the last call, for about half a second at most: a page is waiting."""
        now = time.monotonic()
        if now - self._looked < _AGAIN_S and not self._in_arrears:
            return
        epoch, self._in_arrears = self.epoch, False
        while (lines := self._metrics.lines()) or self._metrics.behind > 4 << 20:
            if epoch != self.epoch:
                return self._start_anew()
            self._take_metrics(lines)
            if time.monotonic() - now > _READ_S:
                self._in_arrears = True
                break
        while lines := self._events.lines():
            if epoch != self.epoch:
                return self._start_anew()
            self._take_events(lines)
        if self._progress is not None and (record := record_of(self._progress)):
            self._groups = {key: int(record.get(key, 0)) for key in ("step", "done", "of", "dropped")}
            self._progress = None
        self._generation = self.folder.generation
        self.processes.update(self._generation, read_end(self.folder, self._generation))
        self._looked = time.monotonic()

    def _start_anew(self) -> None:
        """Reads everything again, after a file was replaced."""
        epochs = self._metrics.epoch, self._events.epoch
        self._metrics, self._events = LineReader(self.folder.metrics), LineReader(self.folder.events)
        self._metrics.epoch, self._events.epoch = epochs
        self._forget()
        self.update()

    def _take_metrics(self, lines: list[bytes]) -> None:
        for line in lines:
            if _PROGRESS in line[:100]:
                self._progress = line
                continue
            if (record := record_of(line)) is None:
                continue
            # A step whose groups are only kept is shown as one that was trained, with the figures that it has.
            kind = "step" if record.get("kind") == "rollout" else str(record.get("kind"))
            if (columns := self.series.get(kind)) is None:
                continue
            columns.append(by_set(record) if kind == "eval" else record)
            self._note_time(record)
            if kind == "step":
                self._take_step(record)
            elif kind == "stage_step":
                self._steps_done = max(self._steps_done, int(record["step"]))
            elif kind == "sync":
                self._take_sync(record)

    def _take_step(self, record: dict[str, Any]) -> None:
        self._progress = self._groups = None
        self._steps_done = max(self._steps_done, int(record["step"]))
        self._recent.append(record)
        if isinstance(found := record.get(HISTOGRAM), dict):
            self._rewards.setdefault("first", {"step": record["step"], **found})
            self._rewards["last"] = {"step": record["step"], **found}

    def _take_sync(self, record: dict[str, Any]) -> None:
        version, engines = int(record["version"]), frozenset(record.get("engines") or ())
        if self._synced is not None:
            for engine in self._synced[1] - engines:
                self._behind[engine] = self._synced[0]
        for engine in engines & self._behind.keys():
            del self._behind[engine]
        self._synced = version, engines

    def _take_events(self, lines: list[bytes]) -> None:
        for line in lines:
            event = record_of(line)
            if event is None:
                continue
            self.events.append(event)
            self.events_seen += 1
            self._note_time(event)
            self.processes.apply_event(event)
            self.lives.apply_event(event)

    def _note_time(self, record: dict[str, Any]) -> None:
        if isinstance(at := record.get("time"), float | int):
            self._times = [min([at, *self._times]), max([at, *self._times])]

    def page_of_events(self, since: int) -> dict[str, Any]:
        """Returns events from number `since` on, of those that are still kept."""
        first = self.events_seen - len(self.events)
        begin = min(max(since, first), self.events_seen)
        end = min(begin + EVENTS_PAGE, self.events_seen)
        rows = [self.events[i - first] for i in range(begin, end)]
        return {"next": end, "more": end < self.events_seen, "rows": rows}

    def life_table(self) -> list[dict[str, Any]]:
        """Returns the lives of the run, the newest first."""
        step = self.series["step"]
        end = read_end(self.folder, self._generation)
        return self.lives.table(step.column("step"), step.column("time"), end)

    def head(self) -> dict[str, Any]:
        """Returns the summary of the run: its state, its progress and a few numbers."""
        state = self._state.read(self.processes.alive)
        found = find_bottleneck(self._recent)
        newest = latest(self.folder.checkpoints)
        return {
            **self._recipe.numbers(),
            "folder": str(self.folder.root),
            "state": state.word,
            "why": state.why,
            "generation": self._generation,
            "steps_done": self._steps_done,
            "groups": self._groups,
            "first_time": self._times[0] if self._times else None,
            "last_time": self._times[1] if self._times else None,
            "now": round(time.time(), 1),
            "checkpoint": newest.name if newest else None,
            "export": (self.folder.export / "config.json").is_file(),
            "bottleneck": None if found is None else {**found._asdict(), "words": found.words},
            "weights": self._weights(),
            "rewards": self._rewards,
            "unread": self.behind,
        }

    def _weights(self) -> dict[str, Any] | None:
        if self._synced is None:
            return None
        version, engines = self._synced
        behind = dict(sorted(self._behind.items())[:50])
        return {"version": version, "engines": len(engines), "behind": behind}


class _Recipe:
    """The values of recipe.yaml that the page needs. Reads the file again when it has changed."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.recipe
        self._mtime = 0.0
        self._numbers: dict[str, Any] = {}

    def numbers(self) -> dict[str, Any]:
        mtime = self._path.stat().st_mtime
        if mtime != self._mtime:
            recipe = yaml.safe_load(self._path.read_text(encoding="utf-8"))
            algorithm = recipe.get("algorithm") or {}
            planned = planned_steps(algorithm)
            self._numbers = {
                "name": recipe.get("name"),
                "steps_planned": planned.all,
                "offline_planned": planned.offline,
                "mode": algorithm.get("mode"),
                "max_staleness": algorithm.get("max_staleness"),
                "eval_set": ((recipe.get("checkpoint") or {}).get("best") or {}).get("set"),
                "model": (recipe.get("model") or {}).get("path"),
            }
            self._mtime = mtime
        return self._numbers


_OF_ALL_SETS = ("time", "generation", "kind", "step", "when", "set")


def by_set(record: dict[str, Any]) -> dict[str, Any]:
    """A line of an evaluation with the set in the names of its figures: "math/reward"."""
    name = record.get("set")
    return {key if key in _OF_ALL_SETS else f"{name}/{key}": value for key, value in record.items()}
