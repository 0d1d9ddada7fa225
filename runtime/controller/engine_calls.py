"""Calls to the engines: to end them, and to make them give up their GPU memory or take it back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from verst.runtime.actors import ActorError, Member, MemberLost
from verst.runtime.messages.apis import RolloutApi
from verst.runtime.messages.jobs import Hold

log = logging.getLogger(__name__)
_ABANDON_S = 10.0  # for an engine's worker to receive the call
_HOLD_S = 300.0  # for an engine to give up its memory or take it back; it usually takes seconds
_GONE_S = 30.0  # for a worker to end after it was told to


async def abandon(member: Member, engine: int, reason: str, role: str = "rollout") -> None:
    """Tells an engine's worker to end; its node agent starts another."""
    try:
        await member.handle(RolloutApi, role, engine, timeout=_ABANDON_S).abandon(reason)
    except ActorError as error:  # it is already gone, and its agent starts another
        log.info("engine %d could not be told to end: %s", engine, error)


async def hold_engines(member: Member, engines: Sequence[int], what: Hold) -> dict[int, ActorError]:
    """Asks all engines to hold `what` of their memory. Returns those that did not, with the reason."""
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
    """Waits until an engine's worker, which was told to end, has left. Gives up after half a minute."""
    deadline = time.monotonic() + _GONE_S
    while time.monotonic() < deadline:
        try:
            await member.find("rollout", engine)
        except MemberLost:
            return
        await asyncio.sleep(0.5)
