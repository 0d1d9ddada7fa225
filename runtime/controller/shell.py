"""The controller's shell: takes events from the members, asks the state machine, carries out its commands.

Everything with sockets, files, clocks and tasks is here; what to do is decided in `state.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.actors import ActorError, Member, MemberLost
from verst.runtime.controller import events as ev
from verst.runtime.controller.batch_plan import plan_step
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.measure import RolloutMeasure, StepRecord
from verst.runtime.controller.prompts import PromptSource
from verst.runtime.controller.service import Mailboxes, Service
from verst.runtime.controller.shown import ShownFiles
from verst.runtime.controller.state import Controller
from verst.runtime.controller.trainers import Trainers
from verst.runtime.controller.turn_calls import HELD, hold_engines, summed_up, wait_gone
from verst.runtime.hooks.dotted import load_function
from verst.runtime.messages.apis import STARTING, RolloutApi, StoreApi, TrainerInfo
from verst.runtime.messages.jobs import Hold
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.messages.step_plan import LossKind, StepReport
from verst.runtime.messages.weight_round import RoundReport, WeightRound
from verst.runtime.metrics.trace import Tracer
from verst.runtime.metrics.trackers import open_sinks
from verst.runtime.run.folder import RunFolder

log = logging.getLogger(__name__)
_WIND_UP_S = 60.0
_SINKS_S = 15.0


class Shell:
    """Carries out commands. Long ones run as tasks and come back as events."""

    def __init__(
        self,
        folder: RunFolder,
        config: ControllerConfig,
        member: Member,
        state: Controller,
        trainers: Trainers,
        prompts: PromptSource,
        mailboxes: Mailboxes,
        service: Service,
        measure: RolloutMeasure,
        info: TrainerInfo,
        events: asyncio.Queue[ev.Event | ev.Finish],
        trace: Tracer,
    ) -> None:
        self._folder = folder
        self._config = config
        self._state = state
        self._trainers = trainers
        self._prompts = prompts
        self._mail = mailboxes
        self._service = service
        self._info = info
        self._events = events
        self._member = member
        self._stores = member.group(StoreApi, "store", timeout=60)
        self._advantage = load_function(config.algorithm.advantage, "advantage function")
        self._trace = trace
        self._record = StepRecord(measure, trace)
        self._sinks = open_sinks(folder, config.metrics)
        self._shown = ShownFiles(folder.shown, config.metrics, prompts.tokenizer)
        self._eval_began: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the loop -----------------------------------------------------------------------------------

    async def run(self) -> ev.Finish:
        """Handles events until the state machine finishes or a command fails."""
        commands = self._state.start()
        while True:
            for command in commands:
                if isinstance(command, ev.Finish):
                    return await self._wind_up(command)
                self._carry_out(command)
            event = await self._events.get()
            if isinstance(event, ev.Finish):  # a command failed
                return event
            self._note(event)
            commands = self._state.handle(event)

    def _carry_out(self, command: ev.Command) -> None:
        match command:
            case ev.SendPrompts(engine, ids, evaluation):
                if evaluation and self._eval_began is None:
                    self._eval_began = time.monotonic()
                self._mail.deliver(engine, [self._prompts.job(id, evaluation) for id in ids])
            case ev.Train(version, groups):
                self._start(self._train(version, list(groups)), f"step {version}")
            case ev.WarmStart(version):
                self._start(self._warm_start(version), f"warm-start step {version}")
            case ev.SyncWeights(version, engines):
                self._start(self._sync(version, engines), f"weight round {version}")
            case ev.PassTurn():
                self._start(self._pass_turn(command), f"passing the GPUs to {command.turn}")
            case ev.LetStart(engine):
                self._service.let_start(engine)
            case ev.Refuse(engine):
                reason = "it came back when it could not have the GPUs"
                self._start(self._abandon(engine, reason), f"refusing engine {engine}")
            case ev.SaveCheckpoint(version):
                self._start(self._save(version), f"checkpoint of version {version}")
            case ev.Export():
                self._start(self._export(), "Hugging Face export")
            case ev.Discard(ids):
                self._start(self._discard(list(ids)), "discarding journalled groups")
            case ev.ReportEval():
                self._report_eval(command)
            case _:
                raise AssertionError(f"no way to carry out {command}")

    def _start(self, work: Awaitable[None], what: str) -> None:
        async def guarded() -> None:
            try:
                await work
            except (ActorError, OSError, ValueError) as error:
                self._fail(f"{what} failed: {error}")

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # a bug: show all of it
            log.error("controller task failed", exc_info=error)
            self._fail(f"controller error: {error!r}")

    def _fail(self, reason: str) -> None:
        self._events.put_nowait(ev.Finish(ok=False, reason=reason))

    # --- training -----------------------------------------------------------------------------------

    async def _train(self, version: int, groups: list[GroupMeta]) -> None:
        self._record.step_begins(groups, version)
        advantages = [[float(a) for a in self._advantage(g.rewards)] for g in groups]
        step = version - self._state.settings.warm_start_steps
        shown = self._shown.choose(step, groups)
        with self._record.busy("train", version, groups=[g.id for g in groups]):
            reports = await self._step(version, "policy", groups, advantages, shown)
        self._metric(**self._record.step_ends(step, reports[0]))
        samples = [sample for report in reports for sample in report.shown]
        self._start(asyncio.to_thread(self._shown.write, step, samples), f"samples of step {step}")
        await self._events.put(ev.Trained(version + 1))

    async def _warm_start(self, version: int) -> None:
        groups = self._prompts.demonstrations(version)
        shards = self._member.members("store")
        metas = []
        for group in groups:
            store = self._member.handle(StoreApi, "store", shards[-group.id % len(shards)].index)
            metas.append(await store.push(group))
        with self._record.busy("train", version):
            report = (await self._step(version, "sft", metas, [[1.0]] * len(metas), []))[0]
        await self._discard([m.id for m in metas])
        self._folder.metric(kind="warm_start", step=version, loss=report.loss, grad_norm=report.grad_norm)
        await self._events.put(ev.Trained(version + 1))

    async def _step(
        self,
        version: int,
        loss: LossKind,
        groups: list[GroupMeta],
        advantages: list[list[float]],
        shown: list[tuple[int, int]],
    ) -> list[StepReport]:
        plan = plan_step(
            step=version,
            loss=loss,
            groups=groups,
            advantages=advantages,
            average=self._config.algorithm.loss_average,
            dp_size=self._info.dp_size,
            max_tokens=self._config.trainer.max_tokens_per_microbatch,
            pad_multiple=self._info.pad_multiple,
            count_multiple=self._info.microbatch_multiple,
            skip_zero_advantage=self._config.algorithm.skip_zero_advantage,
        )
        return await self._trainers.all("train", msgspec.structs.replace(plan, shown=shown))

    async def _sync(self, version: int, engines: tuple[int, ...]) -> None:
        weights = self._config.weights
        request = WeightRound(
            version=version,
            engines=list(engines),
            pause=weights.pause,
            check=weights.check,
            deadline_s=weights.timeout_s,
        )
        with self._record.busy("weight_sync", version, engines=len(engines)):
            report: RoundReport = await self._trainers("sync_weights", request)
        self._record.synced(report)
        self._folder.metric(
            kind="sync",
            version=version,
            engines=report.updated,
            bytes=report.bytes,
            checked_tensors=report.checked_tensors,
            seconds=report.seconds,
            taken=report.longest(),
            links=report.links(),
        )
        for engine, reason in report.failed.items():
            self._folder.event(
                "engine_left_out", message=f"engine {engine} missed weights {version}: {reason}"
            )
            self._start(self._abandon(engine, reason), f"abandoning engine {engine}")
        failed = tuple(report.failed.items())
        await self._events.put(ev.Synced(version, tuple(report.updated), failed))

    async def _abandon(self, engine: int, reason: str, role: str = "rollout") -> None:
        try:
            await self._member.handle(RolloutApi, role, engine, timeout=10).abandon(reason)
        except ActorError as error:  # gone already: its agent sees to it
            log.info("engine %d cannot be told to end: %s", engine, error)

    # --- turns on the same GPUs -------------------------------------------------------------------------

    async def _pass_turn(self, command: ev.PassTurn) -> None:
        """Whoever gives memory up goes first."""
        of_trainer, of_engines = HELD[command.turn]
        began = time.monotonic()
        with self._record.busy("turn", self._state.version, to=command.turn):
            for engine in command.starting:
                await self._abandon(engine, "the run stops while it starts", STARTING)
            if command.before == "trainer" or command.turn == "engines":
                reports = await self._trainers.all("hold", of_trainer)
                lost = await self._hold_engines(command.engines, of_engines)
            else:
                lost = await self._hold_engines(command.engines, of_engines)
                reports = await self._trainers.all("hold", of_trainer)
        self._folder.metric(
            kind="turn",
            turn=command.turn,
            version=self._state.version,
            seconds=time.monotonic() - began,
            **summed_up(reports),
        )
        await self._events.put(ev.TurnPassed(command.turn, lost))

    async def _hold_engines(self, engines: tuple[int, ...], what: Hold) -> tuple[int, ...]:
        """Those that did not, and have been told to end."""
        lost = await hold_engines(self._member, engines, what)
        for engine, reason in lost.items():
            self._folder.event("engine_lost", message=f"engine {engine} does not hold {what}: {reason}")
            if not isinstance(reason, MemberLost):  # else it is gone, and its memory with it
                await self._abandon(engine, str(reason))
                await wait_gone(self._member, engine)
        return tuple(lost)

    # --- checkpoints --------------------------------------------------------------------------------

    async def _save(self, version: int) -> None:
        path = self._folder.checkpoints / f"step-{version:06d}"
        began = time.monotonic()
        saved = msgspec.msgpack.encode(self._state.saved_state())
        with self._record.busy("checkpoint", version):
            await self._trainers("save", str(path), version, saved)
        await self._events.put(ev.SaveStarted(version))
        if self._config.checkpoint.asynchronous:
            while not await self._trainers("saved", False):  # noqa: ASYNC110 (files in another process)
                await asyncio.sleep(1)
        self._saved(path, version, time.monotonic() - began)

    def _saved(self, path: Path, version: int, seconds: float) -> None:
        self._folder.metric(kind="checkpoint", version=version, seconds=seconds)
        self._folder.event("checkpoint", message=f"checkpoint {path.name} is complete", path=str(path))
        self._events.put_nowait(ev.Saved(version))

    async def _export(self) -> None:
        began = time.monotonic()
        await self._trainers("export", str(self._folder.export))
        self._folder.event(
            "export",
            message="Hugging Face export is complete",
            path=str(self._folder.export),
            seconds=time.monotonic() - began,
        )
        await self._events.put(ev.Exported())

    async def _discard(self, ids: list[int]) -> None:
        for answer in await self._stores.discard(ids):
            if isinstance(answer, MemberLost):
                raise answer

    async def _wind_up(self, finish: ev.Finish) -> ev.Finish:
        """Waits for what is still being written before a good or an asked-for end."""
        if not (finish.ok or finish.stopped):
            return finish
        try:
            await self._trainers("saved", True)
        except ActorError as error:
            return ev.Finish(ok=False, reason=f"the last checkpoint failed: {error}")
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_WIND_UP_S)
        return finish

    # --- what people see ----------------------------------------------------------------------------

    def _metric(self, **fields: Any) -> None:
        self._folder.metric(**fields)
        self._sinks.write(fields)

    async def close(self) -> None:
        """Lets what people see catch up; not for long."""
        await asyncio.to_thread(self._sinks.close, _SINKS_S)

    def _note(self, event: ev.Event) -> None:
        match event:
            case ev.EngineLost(engine, reason):
                self._folder.event("engine_lost", message=f"engine {engine} is lost: {reason}")
            case ev.EngineReady(engine):
                self._folder.event("engine_ready", message=f"engine {engine} serves")
            case ev.GroupAccepted():
                done, of = self._state.progress()
                step = self._state.version - self._state.settings.warm_start_steps
                self._folder.metric(kind="rollout_progress", step=step, done=min(done + 1, of), of=of)

    def _report_eval(self, report: ev.ReportEval) -> None:
        self._record.restart_clock()
        if self._eval_began is not None:
            self._trace.add("eval", self._eval_began, time.monotonic(), lane="eval", version=report.version)
            self._eval_began = None
        step = report.version - self._state.settings.warm_start_steps
        self._metric(kind="eval", step=step, when=report.when, score=report.score, samples=report.prompts)
