"""The runs beside the one that is shown: a line for each, and what differs in their recipes.

A line is made from the end of a run's files alone, so that a folder of hundreds of long runs is listed quickly.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from verst.runtime.actors.member import LEASE_S
from verst.runtime.dashboard.flat_recipe import flat, told
from verst.runtime.dashboard.run_state import StateReader
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import record_of
from verst.runtime.run.planned_steps import planned_steps

_MOST = 500  # runs in the list: the last changed
_END = 256 << 10  # bytes of metrics.jsonl to look for the last step in
_AGAIN_S = 2.0
_LINES = tuple(
    f'"kind":"{kind}"'.encode() for kind in ("step", "stage_step", "rollout", "eval")
)  # that it looks at
_NOT_OF_INTEREST = ("name", "runs_dir")


class _Seen(NamedTuple):
    mtime: float
    line: dict[str, Any]


class Runs:
    """The folder of runs, and which of them is shown first. Not thread-safe."""

    def __init__(self, root: Path, chosen: str | None = None) -> None:
        self.root = root
        self.chosen = chosen
        self._readers: dict[str, StateReader] = {}
        self._seen: dict[str, _Seen] = {}
        self._listed: tuple[float, list[dict[str, Any]]] = (0.0, [])

    @staticmethod
    def of(path: Path) -> Runs:
        """The runs beside the run `path`, or if it is not a run folder those in `path`."""
        path = path.absolute()
        return Runs(path.parent, path.name) if (path / "recipe.yaml").is_file() else Runs(path)

    def first(self) -> str | None:
        """The run to show if none is named: the chosen one, or the last changed."""
        return self.chosen or next(iter(self._names()), None)

    def folder(self, name: str) -> RunFolder | None:
        """The folder of a run of this list; None if there is no such run. A name never leads elsewhere."""
        if name == self.chosen:
            return RunFolder(self.root / name)
        if not name or name != Path(name).name or name.startswith(".") or "\0" in name:
            return None
        return RunFolder(self.root / name) if (self.root / name / "recipe.yaml").is_file() else None

    def lines(self) -> list[dict[str, Any]]:
        """A line for each run, the last changed first."""
        if time.monotonic() - self._listed[0] > _AGAIN_S:
            self._listed = time.monotonic(), [self._line(name) for name in self._names()]
        return self._listed[1]

    def differences(self, names: list[str]) -> list[list[str]]:
        """[key, value in each run] of each key of the recipe in which these runs differ."""
        recipes = []
        for name in names:
            if (folder := self.folder(name)) is not None:
                recipes.append(dict(flat(yaml.safe_load(folder.recipe.read_text(encoding="utf-8")) or {})))
        keys = dict.fromkeys(key for recipe in recipes for key in recipe if key not in _NOT_OF_INTEREST)
        rows = [[key, *(told(recipe, key) for recipe in recipes)] for key in keys]
        return [row for row in rows if len(set(row[1:])) > 1]

    def _names(self) -> list[str]:
        found = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.is_dir():
                    continue
                try:
                    os.stat(f"{entry.path}/recipe.yaml")
                except OSError:
                    continue
                found.append((_changed(RunFolder(entry.path)), entry.name))
        return [name for _, name in sorted(found, reverse=True)[:_MOST]]

    def _line(self, name: str) -> dict[str, Any]:
        folder = RunFolder(self.root / name)
        changed = _changed(folder)
        seen = self._seen.get(name)
        if seen is None or seen.mtime != changed:
            seen = self._seen[name] = _Seen(changed, _about(folder))
        reader = self._readers.setdefault(name, StateReader(folder))
        state = reader.read(_any_alive(folder))
        return {"name": name, "state": state.word, "why": state.why[:200], "changed": changed, **seen.line}


def _changed(folder: RunFolder) -> float:
    """When the run last wrote a figure or an event, in seconds since 1970."""
    times = [0.0]
    for path in (folder.metrics, folder.events, folder.recipe):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _any_alive(folder: RunFolder) -> bool:
    """Whether a member has renewed its lease lately, by this machine's clock."""
    oldest = time.time() - 2 * LEASE_S
    try:
        with os.scandir(folder.members) as entries:
            return any(entry.stat().st_mtime > oldest for entry in entries)
    except OSError:
        return False


def _about(folder: RunFolder) -> dict[str, Any]:
    """What the list says of a run, from its files."""
    try:
        recipe = yaml.safe_load(folder.recipe.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError):
        recipe = {}
    best = ((recipe.get("checkpoint") or {}).get("best") or {}).get("set")
    return {**_planned(recipe), **_reached(folder, best)}


def _planned(recipe: dict[str, Any]) -> dict[str, Any]:
    if not recipe:
        return {}
    algorithm, model = recipe.get("algorithm") or {}, (recipe.get("model") or {}).get("path")
    return {
        "steps_planned": planned_steps(algorithm).all,
        "model": None if model is None else Path(str(model)).name,
        "mode": algorithm.get("mode"),
    }


def _reached(folder: RunFolder, eval_set: str | None) -> dict[str, Any]:
    """The last step, its reward and the last mean reward of an evaluation set, from the end of metrics.jsonl."""
    try:
        with folder.metrics.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END))
            lines = stream.read().splitlines()
    except OSError:
        return {}
    found: dict[str, Any] = {}
    for line in reversed(lines):
        record = record_of(line) if any(kind in line[:100] for kind in _LINES) else None
        if record is None:
            continue
        if record["kind"] != "eval" and "step" not in found:
            found |= {"step": record.get("step"), "reward": record.get("reward")}
        elif record["kind"] == "eval" and record.get("set") == eval_set and "held_out" not in found:
            found |= {"held_out": record.get("reward"), "held_out_step": record.get("step")}
        if len(found) == 4:
            break
    return found
