"""The calls that bring the GPUs from the trainer to the engines and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from verst.runtime.actors import ActorError, Member, MemberLost
from verst.runtime.controller.events import Turn
from verst.runtime.messages.apis import RolloutApi
from verst.runtime.messages.jobs import Hold, HoldReport

_ENGINE_S = 300.0  # for an engine to give its memory back or to take it; seconds as a rule
_GONE_S = 30.0  # for one that was told to end

# What the trainer and the engines hold in whose turn.
HELD: dict[Turn, tuple[Hold, Hold]] = {
    "trainer": ("all", "nothing"),
    "both": ("weights", "weights"),
    "engines": ("nothing", "all"),
}


async def hold_engines(member: Member, engines: Sequence[int], what: Hold) -> dict[int, ActorError]:
    """Asks all engines to hold `what`; returns those that did not, with the reason."""
    calls = [member.handle(RolloutApi, "rollout", e, timeout=_ENGINE_S).hold(what) for e in engines]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    lost: dict[int, ActorError] = {}
    for engine, answer in zip(engines, answers, strict=True):
        if isinstance(answer, ActorError):
            lost[engine] = answer
        elif isinstance(answer, BaseException):
            raise answer
    return lost


async def wait_gone(member: Member, engine: int) -> None:
    """Waits until an engine's worker, which was told to end, has left, at most half a minute."""
    deadline = time.monotonic() + _GONE_S
    while time.monotonic() < deadline:
        try:
            await member.find("rollout", engine)
        except MemberLost:
            return
        await asyncio.sleep(0.5)


def summed_up(reports: Sequence[HoldReport]) -> dict[str, Any]:
    """The trainer's ranks in a line of metrics.jsonl, in bytes: the one with the most of each."""
    return {
        "trainer_held": max(report.held for report in reports),
        "trainer_offloaded": max(report.offloaded for report in reports),
        "trainer_allocated": max(report.allocated for report in reports),
        "trainer_seconds": max(report.seconds for report in reports),
    }
