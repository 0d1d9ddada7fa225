"""Reports the run to people: lines of events.jsonl and metrics.jsonl, and the figures that trackers get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from verst.runtime.controller.reporting.measure import StepRecord
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.loop_state import LoopState
from verst.runtime.hooks.values import OWN_REASONS
from verst.runtime.messages.group_ids import prompt_of
from verst.runtime.messages.step_plan import StepReport
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.trace import Tracer
from verst.runtime.metrics.trackers import open_sinks
from verst.runtime.run.folder import RunFolder

_SINKS_S = 15.0  # for the trackers to send the last figures
_PROGRESS_S = (
    1.0  # between two lines of progress that only tell of dropped groups, of which there may be thousands
)


class Reporting:
    """Writes lines about steps, engines, groups and evaluations. Other commands write their own lines."""

    def __init__(
        self,
        folder: RunFolder,
        config: MetricsConfig,
        state: LoopState,
        record: StepRecord,
        trace: Tracer,
        eval_left_out: Mapping[str, int],
        source_of: Callable[[int], str] = lambda position: "",
    ) -> None:
        """`eval_left_out`: by evaluation set, the rows that are too long to be used.

        `source_of` names the source of the prompt at a position; "" if there is one file.
        """
        self._folder = folder
        self._state = state
        self._record = record
        self._trace = trace
        self._sinks = open_sinks(folder, config)
        self._eval_began: float | None = None
        self._told: set[str] = set()  # reasons of dropped groups that this step has an event about
        self._progress_at = 0.0
        self._eval_left_out = eval_left_out
        self._source_of = source_of

    def metric(self, **fields: Any) -> None:
        """Writes a line of metrics.jsonl, and sends it to the trackers."""
        self._folder.metric(**fields)
        self._sinks.write(fields)

    def event(self, kind: str, message: str) -> None:
        """Writes a line of events.jsonl."""
        self._folder.event(kind, message=message)

    def offline_step(self, stage: str, epoch: float, report: StepReport, seconds: dict[str, float]) -> None:
        """Reports a step of a stage without engines.

        `epoch`: passes over its rows so far. `seconds`: of the whole "step", and of its parts.
        """
        self.metric(
            kind="stage_step",
            step=report.step + 1,
            stage=stage,
            loss=report.loss,
            grad_norm=report.grad_norm,
            lr=report.lr,
            epoch=epoch,
            **report.metrics,
            tokens=report.tokens,
            tokens_per_s=report.tokens / seconds["step"],
            seconds={**seconds, **{f"train/{phase}": s for phase, s in report.seconds.items()}},
        )

    def rows_evaluated(self, stage: str, version: int, report: StepReport, rows: int) -> None:
        """Reports the loss on a stage's held-out rows."""
        found = {"loss": report.loss, **report.metrics}
        figures = {f"{stage}_{name.removeprefix(f'{stage}_')}": value for name, value in found.items()}
        self.metric(kind="stage_eval", step=version, stage=stage, rows=rows, **figures)

    def note(self, event: ev.Event) -> None:
        """Reports an event. Call it before the state machine handles the event."""
        match event:
            case ev.EngineLost(engine, reason):
                self._folder.event("engine_lost", message=f"engine {engine} is lost: {reason}")
            case ev.EngineReady(engine):
                self._folder.event("engine_ready", message=f"engine {engine} serves")
            case ev.GroupAccepted():
                self._progress(1)
            case ev.EvalScored(version=version):
                if self._state.evals.runs(version):
                    self._eval_progress()
            case ev.Trained():
                self._told.clear()

    def dropped(self, drop: ev.ReportDropped) -> None:
        """Counts a dropped group. The first of a step for each reason is told in an event, but for a filter's own."""
        source = self._source_of(prompt_of(drop.id))
        self._record.dropped(drop.reason, reissued=drop.reissued, source=source)
        if time.monotonic() - self._progress_at > _PROGRESS_S:
            self._progress(0)
        if drop.reason not in OWN_REASONS or drop.reason in self._told:
            return
        self._told.add(drop.reason)
        again = "; its prompt is issued again" if drop.reissued else ""
        self._folder.event(
            "group_dropped",
            message=f"prompt group {drop.id} is dropped ({drop.reason}): {drop.detail}{again}",
        )

    def warn_dropped(self, message: str) -> None:
        """Tells that so many groups in a row were dropped that the run may end."""
        self._folder.event("groups_dropped", message=message)

    def _eval_progress(self) -> None:
        done, of = self._state.evals.progress
        # At most fifty lines for an evaluation, however many prompts it has.
        if done + 1 < of and (done + 1) % max(1, of // 50) == 0:
            self._folder.metric(kind="eval_progress", step=self._state.evals.version, done=done + 1, of=of)

    def _progress(self, more: int) -> None:
        done, of = self._state.progress()
        self._folder.metric(
            kind="rollout_progress",
            step=self._state.version + 1,  # the step that these groups are for
            done=min(done + more, of),
            of=of,
            dropped=self._record.dropped_groups,
        )
        self._progress_at = time.monotonic()

    def evaluating(self, version: int) -> None:
        """An engine gets evaluation prompts. With the first ones the evaluation begins."""
        if self._eval_began is None:
            self._eval_began = time.monotonic()
            self._folder.metric(kind="eval_progress", step=version, done=0, of=self._state.evals.progress[1])

    def evaluated(self, report: ev.ReportEval) -> None:
        """Reports a set of an evaluation that is complete."""
        samples = next(s.scale.samples for s in self._state.settings.evals if s.name == report.set)
        self.metric(
            kind="eval",
            set=report.set,
            step=report.version,
            when=report.when,
            **report.figures,
            samples=report.prompts * samples,
            prompts=report.prompts,
            left_out=self._eval_left_out[report.set],
        )

    def eval_ended(self, ended: ev.EvalEnded) -> None:
        """An evaluation is over: all its sets are reported, or it has no result."""
        if self._eval_began is not None:
            self._record.evaluated(ended.version, self._eval_began)
            self._eval_began = None
        if ended.lost:
            self._folder.event(
                "evaluation_lost",
                message=f"the evaluation of step {ended.version} has no result: no engine has its weights any more",
            )

    async def close(self) -> None:
        """Waits for the trackers to send the last figures, but not for long."""
        await asyncio.to_thread(self._sinks.close, _SINKS_S)
