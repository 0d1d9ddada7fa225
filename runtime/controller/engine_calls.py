"""The calls with which the controller ends engines, or makes them give their memory back or take it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from verst.runtime.actors import ActorError, Member, MemberLost
from verst.runtime.messages.apis import RolloutApi
from verst.runtime.messages.jobs import Hold

log = logging.getLogger(__name__)
_ABANDON_S = 10.0  # for an engine's worker to hear that it has to end
_HOLD_S = 300.0  # for an engine to give its memory back or to take it; seconds as a rule
_GONE_S = 30.0  # for a worker that was told to end


async def abandon(member: Member, engine: int, reason: str, role: str = "rollout") -> None:
    """Tells an engine's worker to end; its node agent starts another."""
    try:
        await member.handle(RolloutApi, role, engine, timeout=_ABANDON_S).abandon(reason)
    except ActorError as error:  # gone already: its agent sees to it
        log.info("engine %d cannot be told to end: %s", engine, error)


async def hold_engines(member: Member, engines: Sequence[int], what: Hold) -> dict[int, ActorError]:
    """Asks all engines to hold `what`; returns those that did not, with the reason."""
    calls = [member.handle(RolloutApi, "rollout", e, timeout=_HOLD_S).hold(what) for e in engines]
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
