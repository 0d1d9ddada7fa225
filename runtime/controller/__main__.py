"""The controller's process: it waits for the other processes, runs the loop and reports how the run ended."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path

import msgspec

from verst.runtime.actors import ActorError, Member
from verst.runtime.controller.config import ControllerConfig
from verst.runtime.controller.curricula import Curricula
from verst.runtime.controller.data_record import training_rows
from verst.runtime.controller.earlier_groups import take_over
from verst.runtime.controller.final_faults import final_fault
from verst.runtime.controller.happening_hooks import HappeningHooks
from verst.runtime.controller.logprob_filter import LogprobFilter
from verst.runtime.controller.patience import Patience
from verst.runtime.controller.prompts import PromptSource
from verst.runtime.controller.recorded import read_note, steps_to_train
from verst.runtime.controller.reporting.measure import RolloutMeasure
from verst.runtime.controller.service import Mailboxes, Service
from verst.runtime.controller.shell import Shell
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.loop_state import SavedState
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.controller.stores import Stores
from verst.runtime.controller.trainers import Trainers
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.happenings import RunEnd, RunStart
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.apis import STARTING, TrainerInfo
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.node.member_process import MemberProcess, say
from verst.runtime.run.checkpoints import controller_state, latest
from verst.runtime.run.ending import HOPELESS, STOPPED
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan

log = logging.getLogger(__name__)
Events = asyncio.Queue[ev.Event | ev.Finish]
_MEMBERS_S = 300.0
_ADVANTAGE_S = 60.0  # for the advantages of one step
_WATCH_S = 1.0
_WATCH_MISSES = 3
# A worker leaves for a moment when its engine has started; one that died is soon replaced.
_STARTING_MISSES = 30


async def main(process: MemberProcess) -> None:
    """Runs the training. On SIGUSR2 from the node agent it stops at the next step boundary and saves."""
    folder = process.folder
    events: Events = asyncio.Queue()
    looping = asyncio.Event()
    run = asyncio.create_task(_run(process, events, looping))
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def stop_asked() -> None:
        if asked.is_set():  # the agent repeats its signal
            return
        asked.set()
        if looping.is_set():
            events.put_nowait(ev.StopAsked("the node agent asked the run to stop"))
        else:
            run.cancel()

    # No handler of the asyncio loop: it would end with the loop, and the next signal would end the process.
    signal.signal(signal.SIGUSR2, lambda number, frame: loop.call_soon_threadsafe(stop_asked))
    try:
        finish = await run
    except asyncio.CancelledError:
        finish = ev.Finish(ok=False, reason="the run was asked to stop before its first step", stopped=True)
    except (ActorError, OSError, ValueError, HookError) as error:
        what = "the run could not go on" if looping.is_set() else "the run could not start"
        reason, fault = f"{what}: {error}", final_fault(error)
        finish = ev.Finish(
            False, fault or reason, hopeless=fault is not None or isinstance(error, ValueError)
        )
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _tell(folder, finish)
    if not finish.ok:
        sys.exit(HOPELESS if finish.hopeless else STOPPED if finish.stopped else 1)


def _tell(folder: RunFolder, finish: ev.Finish) -> None:
    """Writes the end of the run to its events, and to the process's log unless the run succeeded.

    The log has it even when the events cannot be written.
    """
    kind = "finished" if finish.ok else "failed" if finish.hopeless or not finish.stopped else "stopped"
    if not finish.ok:
        say(f"the run {kind}: {finish.reason}")
    try:
        folder.event(kind, message=finish.reason)
    except OSError as error:
        say(f"the run {kind}, but its events cannot be written: {error}")


async def _run(process: MemberProcess, events: Events, looping: asyncio.Event) -> ev.Finish:
    folder = process.folder
    config = ControllerConfig.read(folder)
    advantage = Hook("advantage function", config.algorithm.advantage, timeout_s=_ADVANTAGE_S)
    named = config.algorithm.logprob_filter
    logprob_filter = None if named is None else LogprobFilter(named)
    hooks = HappeningHooks(config.hooks, folder)
    prompts = PromptSource(config)
    record = prompts.record()
    curricula = Curricula(prompts.training if config.generates else None, training_rows(record))
    mailboxes, measure = Mailboxes(), RolloutMeasure()
    colocated = config.placement.layout == "colocated"
    service = Service(events.put_nowait, mailboxes, measure, admits=colocated, drop_scored=curricula.scored)
    member = await process.join("controller", service)
    plan = Plan.read(folder.plan)
    stores, ranks = plan.count("store"), plan.count("trainer")
    await member.wait_for("store", stores, _MEMBERS_S)
    await member.wait_for("trainer", ranks, _MEMBERS_S)
    trainers = Trainers(member, ranks, config.trainer.step_timeout_s)
    checkpoint = latest(folder.checkpoints)
    earlier = await take_over(
        Stores(member),
        stores,
        folder,
        record,
        trained=checkpoint is not None,
        accept=config.data.accept_changes,
    )
    saved = None
    if checkpoint is not None:
        saved = msgspec.msgpack.decode(controller_state(checkpoint), type=SavedState)
        folder.event("resume", message=f"resuming from {checkpoint.name}", path=str(checkpoint))
    info: TrainerInfo = await trainers("setup", None if checkpoint is None else str(checkpoint))
    folder.event(
        "trainer_ready", message=f"{ranks} trainer ranks hold {info.parameters / 1e6:.1f} M parameters"
    )
    max_tokens = config.max_sample_tokens(info.pad_multiple)
    prompts.limit(max_tokens, info.pad_multiple)
    settings = config.settings(prompts.held_out.sets, max_tokens)
    state = Controller(settings, saved, earlier, await _recorded(folder, config, Stores(member), stores))
    trace = process.tracer()
    shell = Shell(
        folder,
        config,
        member,
        state,
        trainers,
        prompts,
        mailboxes,
        service,
        measure,
        info,
        events,
        trace,
        advantage,
        logprob_filter,
        hooks,
        curricula,
    )
    known = saved.curricula if saved else b""
    await curricula.begin(state.version, settings.last_version, known, earlier, state.groups.done)
    start = RunStart(
        folder=folder.root, life=process.generation, version=state.version, checkpoint=checkpoint
    )
    await hooks.tell("run_start", "the run's start", start)
    patience = Patience(folder, state, config.rollout.wait_for_engines_s, events)
    watching = asyncio.create_task(_watch_engines(member, service, events, patience))
    looping.set()
    try:
        return await _told(hooks, folder, await shell.run())
    finally:
        watching.cancel()
        trace.close()
        await shell.close()


async def _told(hooks: HappeningHooks, folder: RunFolder, finish: ev.Finish) -> ev.Finish:
    """Tells the recipe's function how the run ends. Its fault is that of a run that would else have ended well."""
    end = RunEnd(folder=folder.root, ok=finish.ok, stopped=finish.stopped, reason=finish.reason)
    try:
        await hooks.tell("run_end", "the run's end", end)
    except HookError as error:
        if finish.ok:
            return ev.Finish(ok=False, reason=str(error), hopeless=True)
        say(str(error))
    return finish


async def _recorded(
    folder: RunFolder, config: ControllerConfig, stores: Stores, shards: int
) -> dict[int, tuple[GroupMeta, ...]] | None:
    """The steps of the recording that the run trains on; None if its groups are generated."""
    if config.record.source is None:
        return None
    return steps_to_train(Path(config.record.source), await stores.recording(shards), read_note(folder))


async def _watch_engines(member: Member, service: Service, events: Events, patience: Patience) -> None:
    """Reports engines whose worker is gone. An engine that comes back reports itself (`engine_ready`)."""
    misses: dict[str, int] = {}
    roles = ("rollout", STARTING) if service.admits else ("rollout",)
    while True:
        present = {info.incarnation for role in roles for info in member.members(role)}
        for engine, incarnation in list(service.engines.items()):
            # It can take a second until a member that has joined is listed.
            misses[incarnation] = 0 if incarnation in present else misses.get(incarnation, 0) + 1
            if misses[incarnation] == (_STARTING_MISSES if service.starts(incarnation) else _WATCH_MISSES):
                del service.engines[engine]
                await events.put(ev.EngineLost(engine, "its worker is gone"))
        try:
            patience.look(time.monotonic())
        except OSError as error:  # it writes events
            await events.put(ev.Finish(ok=False, reason=f"watching the engines failed: {error}"))
        await asyncio.sleep(_WATCH_S)


if __name__ == "__main__":
    MemberProcess.run(main)
