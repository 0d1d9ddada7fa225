"""Computes a run's progress from metrics.jsonl and events.jsonl in its folder.

It works during and after the run, on any machine that can read the folder.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import yaml

from verst.launcher.watch.phase import Phase
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader
from verst.runtime.run.planned_steps import planned_steps

_EVENTS_KEPT = 200


@dataclass
class Progress:
    """The progress of a run, as the views show it. Only `apply_metric` and `apply_event` change it."""

    name: str
    steps_planned: int  # of all stages, so it is the number of the last step
    offline_planned: int = 0  # steps of stages without engines
    offline: dict[int, dict[str, Any]] = field(default_factory=dict)  # these steps, by number
    steps: dict[int, dict[str, Any]] = field(
        default_factory=dict
    )  # by number of the step; a step that is repeated replaces the earlier record
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stage_evaluations: list[dict[str, Any]] = field(default_factory=list)  # of stages without engines
    groups: tuple[int, int, int] | None = None  # step, groups finished, groups needed
    dropped: int = 0  # groups dropped since the last step began
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_EVENTS_KEPT))
    first_time: float | None = None
    last_time: float | None = None
    phase: Phase = field(default_factory=Phase)
    _life: int = -1

    def apply_in_order(self, metrics: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
        """Applies new records of both files in order of time."""
        for record in sorted([*metrics, *events], key=lambda record: record.get("time") or 0.0):
            life = record.get("generation")
            begins = isinstance(life, int) and life > self._life
            if isinstance(life, int) and begins:
                self._life = life
            self.phase.apply(record, life_began=begins)

    def apply_metric(self, record: dict[str, Any]) -> None:
        """Applies one record of metrics.jsonl."""
        self._note_time(record)
        match record.get("kind"):
            case "step" | "rollout":  # the second of a run that only generates
                self.steps[int(record["step"])] = record
                self.groups = None
            case "stage_step":
                self.offline[int(record["step"])] = record
            case "stage_eval":
                self.stage_evaluations.append(record)
            case "rollout_progress":
                self.groups = (int(record["step"]), int(record["done"]), int(record["of"]))
                self.dropped = int(record.get("dropped", 0))
            case "eval":
                self.evaluations.append(record)

    def apply_event(self, record: dict[str, Any]) -> None:
        """Applies one record of events.jsonl."""
        self._note_time(record)
        self.events.append(record)

    @property
    def steps_done(self) -> int:
        """The number of the last step. A step has the number of the weight version that it made."""
        return max(self.steps, default=self.offline_done)

    @property
    def offline_done(self) -> int:
        """The number of the last step of a stage without engines."""
        return max(self.offline, default=0)

    @property
    def last_step(self) -> dict[str, Any] | None:
        """The record of the latest step."""
        steps = self.steps or self.offline
        return steps[max(steps)] if steps else None

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of each step of stages without engines, in order."""
        return [(step, float(self.offline[step]["loss"])) for step in sorted(self.offline)]

    def rewards(self) -> list[tuple[int, float]]:
        """(step, mean reward) of each step, in order."""
        return [
            (step, float(self.steps[step]["reward"]))
            for step in sorted(self.steps)
            if "reward" in self.steps[step]
        ]

    def evaluation(self, when: str, set: str) -> dict[str, Any] | None:
        """The last evaluation of a set made `when`: "before", "during" or "after" training."""
        made = (e for e in reversed(self.evaluations) if e.get("when") == when and e.get("set") == set)
        return next(made, None)

    def seconds_by_phase(self) -> dict[str, float]:
        """Mean seconds per step of each phase, longest first. `train/optimizer` is a part of `train`.

        The phase "other" is the rest of a step, outside all recorded phases: waiting, planning and
        evaluation.
        """
        totals: dict[str, float] = {}
        steps = self.steps or self.offline
        for record in steps.values():
            for phase, seconds in phases_of(record).items():
                totals[phase] = totals.get(phase, 0.0) + seconds
        means = {phase: total / len(steps) for phase, total in totals.items()}
        return dict(sorted(means.items(), key=lambda item: -item[1]))

    def seconds_by_step(self) -> float | None:
        """The mean seconds of the last twenty steps; None before the first, also before the first of the policy's."""
        steps = self.offline if self.offline_planned == self.steps_planned else self.steps
        seconds = [steps[step].get("seconds", {}).get("step") for step in sorted(steps)[-20:]]
        known = [float(value) for value in seconds if value is not None]
        return sum(known) / len(known) if known else None

    def _note_time(self, record: dict[str, Any]) -> None:
        if "time" in record:
            self.first_time = record["time"] if self.first_time is None else self.first_time
            self.last_time = record["time"]


def phases_of(step: dict[str, Any]) -> dict[str, float]:
    """The seconds of each phase of a step. "other" is the time outside all recorded phases."""
    seconds = {phase: float(value) for phase, value in (step.get("seconds") or {}).items()}
    whole = seconds.pop("step", None)
    if whole is not None:
        covered = sum(value for phase, value in seconds.items() if "/" not in phase)
        # In the asynchronous modes phases overlap, so their sum may exceed the step.
        seconds["other"] = max(0.0, whole - covered)
    return seconds


class ProgressReader:
    """Follows metrics.jsonl and events.jsonl of a run folder."""

    def __init__(self, folder: RunFolder) -> None:
        recipe = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
        algorithm = recipe["algorithm"]
        planned = planned_steps(algorithm)
        self.progress = Progress(
            name=recipe["name"],
            steps_planned=planned.all,
            offline_planned=planned.offline,
        )
        self._metrics = LineReader(folder.metrics)
        self._events = LineReader(folder.events)

    def update(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Applies the records written since the last call. Returns the new metrics and the new events."""
        metrics = self._metrics.records()
        events = self._events.records()
        for record in metrics:
            self.progress.apply_metric(record)
        for record in events:
            self.progress.apply_event(record)
        self.progress.apply_in_order(metrics, events)
        return metrics, events
