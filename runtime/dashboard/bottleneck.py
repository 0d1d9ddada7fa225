"""Finds the bottleneck of a run: the phase that takes the largest part of the recent steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_NAMES = {
    "rollout": "generating samples",
    "train": "training",
    "weight_sync": "sending new weights to the engines",
    "turn": "passing the GPUs between the trainer and the engines",
    "checkpoint": "writing checkpoints",
    "evaluation": "evaluating on held-out prompts",
    "wait": "waiting while no engine generates",
    "other": "waiting and planning",
}


class Bottleneck(NamedTuple):
    """The phase that takes the largest part of a step."""

    phase: str
    share: float  # of the steps' time, 0 to 1
    part: str | None  # the largest part of the phase, if its parts are timed
    steps: int  # the number of steps that were looked at

    @property
    def words(self) -> str:
        """The bottleneck in a sentence."""
        inside = f", most of it in {self.part.replace('_', ' ')}" if self.part else ""
        over = "the last step" if self.steps == 1 else f"the last {self.steps} steps"
        return f"{_NAMES.get(self.phase, self.phase)} takes {100 * self.share:.0f} % of {over}{inside}"


def find_bottleneck(steps: Iterable[Mapping[str, Any]]) -> Bottleneck | None:
    """Finds the bottleneck in lines of metrics.jsonl of kind "step". Returns None if there are none.

    A line's `critical_path` has the seconds that the run waited for each phase. A line without it has only `seconds`:
    `train` is a phase, `train/optimizer` is a part of it, and `step` is the whole step. Time that no phase covers is
    "other".
    """
    spent: dict[str, float] = {}
    parts: dict[str, float] = {}
    count = 0
    for step in steps:
        count += 1
        seconds = step.get("seconds") or {}
        for phase, value in (step.get("critical_path") or _phases(seconds)).items():
            spent[phase] = spent.get(phase, 0.0) + float(value)
        for name, value in seconds.items():
            if "/" in name:
                parts[name] = parts.get(name, 0.0) + float(value)
    whole = sum(spent.values())
    if not whole > 0:
        return None
    phase = max(spent, key=spent.__getitem__)
    inside = {name: value for name, value in parts.items() if name.startswith(f"{phase}/")}
    part = max(inside, key=inside.__getitem__).partition("/")[2] if inside else None
    return Bottleneck(phase, spent[phase] / whole, part, count)


def _phases(seconds: Mapping[str, float]) -> dict[str, float]:
    phases = {name: float(value) for name, value in seconds.items() if "/" not in name and name != "step"}
    covered = sum(phases.values())
    return {**phases, "other": max(0.0, float(seconds.get("step", covered)) - covered)}
