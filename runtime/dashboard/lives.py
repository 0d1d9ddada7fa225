"""The lives of a run: when each began, how it ended, what failed first, and what changed in the recipe before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from verst.runtime.dashboard.flat_recipe import flat, told
from verst.runtime.run.ending import RunEnd
from verst.runtime.run.folder import RunFolder

_ENDS = ("finished", "failed", "stopped")
_FAILURES = 8  # kept of one life
_LINES = 12  # of the log of a process that failed
_UNSET = object()


@dataclass
class _Life:
    number: int
    began: float
    last: float
    resumed_from: str = ""
    end: tuple[str, str] | None = None  # kind and message
    failures: list[dict[str, Any]] = field(default_factory=list)
    restarts: int = 0


class Lives:
    """Follows the events of a run. Not thread-safe."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._lives: dict[int, _Life] = {}
        self._recipes: dict[int, tuple[float, dict[str, Any]]] = {}  # mtime and flat recipe

    def apply_event(self, event: dict[str, Any]) -> None:
        """Takes an event of events.jsonl."""
        number, at = event.get("generation"), event.get("time")
        if not isinstance(number, int) or not isinstance(at, int | float):
            return
        life = self._lives.setdefault(number, _Life(number, at, at))
        life.began, life.last = min(life.began, at), max(life.last, at)
        kind, text = event.get("kind"), str(event.get("message") or event.get("reason") or "")
        if kind == "resume":
            life.resumed_from = text
        elif kind in _ENDS:
            life.end = (str(kind), text)
        elif kind == "process_restarted":
            life.restarts += 1
        elif kind == "process_failed" and len(life.failures) < _FAILURES:
            life.failures.append(
                {
                    "reason": text,
                    "at": event.get("at", at),
                    "echo": bool(event.get("echo", False)),
                    "lines": [str(line) for line in (event.get("lines") or [])[-_LINES:]],
                }
            )

    def table(self, steps: Sequence[Any], times: Sequence[Any], end: RunEnd | None) -> list[dict[str, Any]]:
        """All lives, the newest first. `steps` and `times` are the columns of the steps; `end` is the present end."""
        lives = [self._lives[number] for number in sorted(self._lives)]
        rows = []
        for place, life in enumerate(lives):
            until = lives[place + 1].began if place + 1 < len(lives) else float("inf")
            in_life = [
                (s, t) for s, t in zip(steps, times, strict=True) if t is not None and life.began <= t < until
            ]
            mine = [step for step, _ in in_life]
            rows.append(
                {
                    "life": life.number,
                    "began": life.began,
                    "last": max([life.last, *(time for _, time in in_life)]),
                    "resumed_from": life.resumed_from,
                    "steps": [min(mine), max(mine)] if mine else None,
                    "how": self._how(life, end, is_last=place + 1 == len(lives)),
                    "failures": sorted(life.failures, key=lambda f: (f["echo"], f["at"])),
                    "restarts": life.restarts,
                    "changes": self._changes(lives[place - 1].number, life.number) if place else [],
                }
            )
        return rows[::-1]

    def _how(self, life: _Life, end: RunEnd | None, *, is_last: bool) -> list[str]:
        """How it ended: a word and the reason."""
        if end is not None and end.generation == life.number:
            word = (
                "finished"
                if end.code == 0
                else "stopped"
                if life.end and life.end[0] == "stopped"
                else "failed"
            )
            return [word, life.end[1] if life.end and life.end[1] else end.reason]
        if life.end is not None:
            return list(life.end)
        if life.failures:
            first = min(life.failures, key=lambda failure: (failure["echo"], failure["at"]))
            return ["failed", first["reason"]]
        if is_last:
            return ["running", ""]
        return ["interrupted", "it left no word: it was killed, or lost its node"]

    def _changes(self, before: int, after: int) -> list[list[Any]] | None:
        """[key, before, after] of each key of the recipe that changed; None if a life's recipe was not kept."""
        old, new = self._recipe(before), self._recipe(after)
        if old is None or new is None:
            return None
        keys = [*new, *(key for key in old if key not in new)]
        return [
            [key, told(old, key), told(new, key)]
            for key in keys
            if old.get(key, _UNSET) != new.get(key, _UNSET)
        ]

    def _recipe(self, number: int) -> dict[str, Any] | None:
        path = self._folder.root / "recipes" / f"life-{number}.yaml"
        try:
            mtime = path.stat().st_mtime
        except FileNotFoundError:
            return None
        known = self._recipes.get(number)
        if known is None or known[0] != mtime:
            known = self._recipes[number] = (mtime, _read(path))
        return known[1]


def _read(path: Path) -> dict[str, Any]:
    return dict(flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {}))
