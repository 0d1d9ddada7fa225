"""An evaluation without training as a pure state machine: engines come and go, prompts are answered, it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.dispatch import send_evaluation
from verst.runtime.controller.state_machine.evaluations import EvalSet, Evaluations
from verst.runtime.controller.state_machine.fleet import Fleet

_MAX_ATTEMPTS = 3  # failures of one prompt that end it


class LoneEvaluation:
    """Evaluates version 0, which every engine serves from its start."""

    def __init__(self, sets: Sequence[EvalSet], concurrency: int) -> None:
        """`concurrency`: the samples that an idle engine has room for."""
        self.evals = Evaluations(sets, first=0, last=0)
        self.evals.begin(0)
        self.fleet = Fleet()
        self._concurrency = concurrency

    def handle(self, event: ev.Event) -> list[ev.Command]:
        """Takes one event and returns what to do now, in order."""
        commands: list[ev.Command] = []
        match event:
            case ev.EngineReady(engine):
                self._lose(engine)
                self.fleet.join(engine)
                self.fleet.begin_sync()
                self.fleet.end_sync(0, [engine], [])
                self.fleet.hold(0, None)
            case ev.EngineLost(engine):
                self._lose(engine)
            case ev.PromptsWanted(engine, room):
                self.fleet.asks(engine, room)
            case ev.GroupFailed():
                if (failed := self._failed(event)) is not None:
                    return [failed]
            case ev.EvalScored():
                commands += self._scored(event)
            case ev.StopAsked(reason):
                return [ev.Finish(ok=False, reason=reason, stopped=True)]
        return commands + send_evaluation(
            self.fleet, self.evals, lambda samples: min(samples, self._concurrency)
        )

    def _lose(self, number: int) -> None:
        engine = self.fleet.leave(number)
        if engine is not None:
            self.evals.requeue(self.fleet.take_back(engine)[1])

    def _failed(self, event: ev.GroupFailed) -> ev.Finish | None:
        each, row = self.evals.place(event.id)
        what = f"evaluation prompt {row} of {each.name}"
        if event.fatal:
            return ev.Finish(False, f"{what}: {event.reason}", hopeless=True)
        self.fleet.finished(event.id, evaluation=True)
        if (attempts := self.evals.failed(event.id)) >= _MAX_ATTEMPTS:
            return ev.Finish(False, f"{what} failed {attempts} times, last: {event.reason}")
        return None

    def _scored(self, event: ev.EvalScored) -> list[ev.Command]:
        self.fleet.finished(event.id, evaluation=True)
        report = self.evals.scored(event.id, event.answers)
        if report is None:
            return []
        report = dataclasses.replace(report, when="alone")
        if self.evals.running:
            return [report]
        return [report, ev.EvalEnded(0, report.when), ev.Finish(True, "all prompts are answered")]
