"""The controller's loop: take an event, ask the state machine (`state_machine/`), carry out its commands.

Everything with sockets, files, clocks and tasks is on this side. A command that takes long runs beside the loop
(`background.py`): a step (`training.py`), a weight round (`weight_rounds.py`), passing the GPUs (`turn_calls.py`)
or a checkpoint (`saving.py`).
"""

from __future__ import annotations

import asyncio

from verst.runtime.actors import ActorError, Member
from verst.runtime.controller.background import Background
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.curricula import Curricula
from verst.runtime.controller.engine_calls import abandon
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.controller.logprob_filter import LogprobFilter
from verst.runtime.controller.prompts import PromptSource
from verst.runtime.controller.reporting.measure import RolloutMeasure, StepRecord
from verst.runtime.controller.reporting.reporting import Reporting
from verst.runtime.controller.reporting.shown import ShownFiles
from verst.runtime.controller.saving import Saving
from verst.runtime.controller.service import Mailboxes, Service
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.controller.stores import Stores
from verst.runtime.controller.trainers import Trainers
from verst.runtime.controller.training import Training
from verst.runtime.controller.turn_calls import TurnCalls
from verst.runtime.controller.weight_rounds import WeightRounds
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.apis import TrainerInfo
from verst.runtime.metrics.trace import Tracer
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.recording import StepList

_WIND_UP_S = 60.0  # for the work that still runs when the loop has ended


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
        advantage: Hook,
        logprob_filter: LogprobFilter | None,
        hooks: HappeningHooks,
        curricula: Curricula,
    ) -> None:
        self._state = state
        self._events = events
        self._prompts = prompts
        self._mail = mailboxes
        self._service = service
        self._member = member
        self._stores = Stores(member)
        record = StepRecord(measure, trace)
        left_out = prompts.held_out.left_out
        self._reporting = Reporting(
            folder,
            config.metrics,
            state,
            record,
            trace,
            left_out,
            lambda position: prompts.training.source_of(position),  # a run that generates nothing has none
        )
        self._background = background = Background(events.put_nowait)
        self._shown = shown = ShownFiles(
            folder.shown,
            config.metrics,
            prompts.tokenizer,
            lambda id, held_out: prompts.job(id, held_out).prompt,
            prompts.held_out.place,
        )
        self._training = Training(
            config,
            advantage,
            trainers,
            info,
            self._stores,
            prompts,
            record,
            self._reporting,
            shown,
            background,
            hooks,
            curricula,
            StepList(folder.samples) if config.record.keep else None,
            logprob_filter,
        )
        self._curricula = curricula
        self._rounds = WeightRounds(config.weights, member, trainers, record, folder, background, hooks)
        self._turns = TurnCalls(member, trainers, record, folder)
        self._saving = Saving(
            state,
            trainers,
            record,
            folder,
            events.put_nowait,
            hooks,
            curricula,
            asynchronous=config.checkpoint.asynchronous,
        )

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
            self._reporting.note(event)
            commands = self._state.handle(event)

    def _carry_out(self, command: ev.Command) -> None:
        start = self._background.start
        match command:
            case ev.SendPrompts(engine, ids, evaluation, version):
                if evaluation:
                    assert version is not None
                    self._reporting.evaluating(version)
                self._mail.deliver(engine, [self._prompts.job(id, evaluation, version) for id in ids])
            case ev.Train(version, groups):
                start(self._training.train(version, list(groups)), f"step {version + 1}")
            case ev.TrainOffline(version):
                start(self._training.offline(version), f"step {version + 1}")
            case ev.KeepGroups(step, groups):
                start(self._training.keep(step, list(groups)), f"the groups of step {step}")
            case ev.SyncWeights(version, engines):
                start(self._rounds.sync(version, engines), f"weight round {version}")
            case ev.PassTurn(turn):
                start(self._turns.pass_turn(command, self._state.version), f"passing the GPUs to {turn}")
            case ev.LetStart(engine):
                self._service.let_start(engine)
            case ev.Refuse(engine):
                reason = "it came back while the GPUs were not free for it"
                start(abandon(self._member, engine, reason), f"refusing engine {engine}")
            case ev.SaveCheckpoint(version):
                start(self._saving.save(version), f"checkpoint of version {version}")
            case ev.Export():
                start(self._saving.export(), "Hugging Face export")
            case ev.Discard(ids):
                start(self._stores.discard(list(ids)), "discarding journalled groups")
            case ev.ReportDropped():
                self._reporting.dropped(command)
                self._curricula.dropped(command.id, reissued=command.reissued)
            case ev.WarnDropped(message):
                self._reporting.warn_dropped(message)
            case ev.ReportEval():
                self._reporting.evaluated(command)
            case ev.StopEarly(version, reason):
                self._reporting.event("early_stop", f"the run ends with step {version}: {reason}")
            case ev.EvalEnded():
                self._reporting.eval_ended(command)
                answers = self._service.take_answers(command.version)
                written = asyncio.to_thread(self._shown.write_answers, command.version, command.when, answers)
                start(written, f"held-out answers of version {command.version}")
            case _:
                raise AssertionError(f"no way to carry out {command}")

    async def _wind_up(self, finish: ev.Finish) -> ev.Finish:
        """Waits for files that are still being written, unless the run has failed."""
        if not (finish.ok or finish.stopped):
            return finish
        try:
            await self._saving.wait()
        except ActorError as error:
            return ev.Finish(ok=False, reason=f"the last checkpoint failed: {error}")
        await self._background.wait(_WIND_UP_S)
        return finish

    async def close(self) -> None:
        """Waits for the trackers to send the last figures, but not for long."""
        await self._reporting.close()
