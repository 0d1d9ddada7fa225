"""Passing the GPUs between the trainer and the engines in the colocated layout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from verst.runtime.actors import Member, MemberLost
from verst.runtime.controller.engine_calls import abandon, hold_engines, wait_gone
from verst.runtime.controller.reporting.measure import StepRecord
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.trainers import Trainers
from verst.runtime.messages.apis import STARTING
from verst.runtime.messages.jobs import Hold, HoldReport
from verst.runtime.run.folder import RunFolder

# For each turn: the memory that the trainer holds, and the memory that the engines hold.
HELD: dict[ev.Turn, tuple[Hold, Hold]] = {
    "trainer": ("all", "nothing"),
    "both": ("weights", "weights"),
    "engines": ("nothing", "all"),
}


class TurnCalls:
    """Carries out `PassTurn`."""

    def __init__(self, member: Member, trainers: Trainers, record: StepRecord, folder: RunFolder) -> None:
        self._member = member
        self._trainers = trainers
        self._record = record
        self._folder = folder

    async def pass_turn(self, command: ev.PassTurn, version: int) -> ev.TurnPassed:
        """Passes the GPUs on. Whoever gives up memory goes first, so that the other has room for its own."""
        of_trainer, of_engines = HELD[command.turn]
        began = time.monotonic()
        with self._record.busy("turn", version, to=command.turn):
            for engine in command.starting:
                await abandon(self._member, engine, "the run stops while it starts", STARTING)
            if command.before == "trainer" or command.turn == "engines":
                reports = await self._trainers.all("hold", of_trainer)
                lost = await self._hold_engines(command.engines, of_engines)
            else:
                lost = await self._hold_engines(command.engines, of_engines)
                reports = await self._trainers.all("hold", of_trainer)
        self._folder.metric(
            kind="turn",
            turn=command.turn,
            version=version,
            seconds=time.monotonic() - began,
            **summed_up(reports),
        )
        return ev.TurnPassed(command.turn, lost)

    async def _hold_engines(self, engines: tuple[int, ...], what: Hold) -> tuple[int, ...]:
        """Asks the engines to hold `what`. Tells the engines that failed to do so to end, and returns them."""
        lost = await hold_engines(self._member, engines, what)
        for engine, reason in lost.items():
            self._folder.event(
                "engine_lost",
                message=f"engine {engine} failed to hold {what} on its GPUs: {reason}",
            )
            if not isinstance(reason, MemberLost):  # else the process is gone, and its memory is free
                await abandon(self._member, engine, str(reason))
                await wait_gone(self._member, engine)
        return tuple(lost)


def summed_up(reports: Sequence[HoldReport]) -> dict[str, Any]:
    """The trainer's fields of a line of metrics.jsonl: the maximum over its ranks, in bytes and seconds."""
    return {
        "trainer_held": max(report.held for report in reports),
        "trainer_offloaded": max(report.offloaded for report in reports),
        "trainer_allocated": max(report.allocated for report in reports),
        "trainer_seconds": max(report.seconds for report in reports),
    }
