"""Reports the run to people: lines of events.jsonl and metrics.jsonl, and the figures that trackers get."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from verst.runtime.controller.reporting.measure import StepRecord
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.loop_state import LoopState
from verst.runtime.messages.step_plan import StepReport
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.trace import Tracer
from verst.runtime.metrics.trackers import open_sinks
from verst.runtime.run.folder import RunFolder

_SINKS_S = 15.0  # for the trackers to send the last figures


class Reporting:
    """Writes lines about steps, engines, groups and evaluations. Other commands write their own lines."""

    def __init__(
        self, folder: RunFolder, config: MetricsConfig, state: LoopState, record: StepRecord, trace: Tracer
    ) -> None:
        self._folder = folder
        self._state = state
        self._record = record
        self._trace = trace
        self._sinks = open_sinks(folder, config)
        self._eval_began: float | None = None

    def metric(self, **fields: Any) -> None:
        """Writes a line of metrics.jsonl, and sends it to the trackers."""
        self._folder.metric(**fields)
        self._sinks.write(fields)

    def event(self, kind: str, message: str) -> None:
        """Writes a line of events.jsonl."""
        self._folder.event(kind, message=message)

    def warm_start(self, version: int, report: StepReport) -> None:
        """Reports a warm-start step."""
        self._folder.metric(kind="warm_start", step=version, loss=report.loss, grad_norm=report.grad_norm)

    def note(self, event: ev.Event) -> None:
        """Reports an event. Call it before the state machine handles the event."""
        match event:
            case ev.EngineLost(engine, reason):
                self._folder.event("engine_lost", message=f"engine {engine} is lost: {reason}")
            case ev.EngineReady(engine):
                self._folder.event("engine_ready", message=f"engine {engine} serves")
            case ev.GroupAccepted():
                done, of = self._state.progress()
                step = self._step(self._state.version)
                self._folder.metric(kind="rollout_progress", step=step, done=min(done + 1, of), of=of)

    def evaluating(self) -> None:
        """An engine gets evaluation prompts. With the first ones the evaluation begins."""
        if self._eval_began is None:
            self._eval_began = time.monotonic()

    def evaluated(self, report: ev.ReportEval) -> None:
        """Reports an evaluation that is complete."""
        self._record.restart_clock()
        if self._eval_began is not None:
            self._trace.add("eval", self._eval_began, time.monotonic(), lane="eval", version=report.version)
            self._eval_began = None
        step = self._step(report.version)
        self.metric(kind="eval", step=step, when=report.when, score=report.score, samples=report.prompts)

    async def close(self) -> None:
        """Waits for the trackers to send the last figures, but not for long."""
        await asyncio.to_thread(self._sinks.close, _SINKS_S)

    def _step(self, version: int) -> int:
        """The number of reinforcement-learning steps that made this version."""
        return version - self._state.settings.warm_start_steps
