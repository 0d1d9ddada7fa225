"""Lets an engine that shares its GPUs with the trainer start only when the controller allows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from verst.runtime.actors import ActorError, CallTimeout, StaleGeneration
from verst.runtime.messages.apis import STARTING, ControllerApi, RolloutApi
from verst.runtime.messages.jobs import EngineInfo
from verst.runtime.node.member_process import MemberProcess

_ASK_S = 30.0  # the controller answers within 10 s, if only that the engine may not start yet
_CONTROLLER_S = 600.0  # how long the controller may be absent
_AGAIN_S = 1.0


class _Starting(RolloutApi):
    """Represents the worker in the run while its engine starts."""

    def __init__(self, starts: asyncio.Task[None]) -> None:
        self._starts = starts

    async def abandon(self, reason: str) -> None:
        self._starts.cancel(reason)


@asynccontextmanager
async def admitted(process: MemberProcess) -> AsyncIterator[None]:
    """A context for starting the engine: it is entered when the engine may start, and left when it has started.

    Inside, the process is a member of the run, so that the controller notices if it dies. Raises ActorError if the
    controller is lost, and CancelledError with the reason if the controller wants the GPUs back.
    """
    starts = asyncio.current_task()
    assert starts is not None
    deadline = asyncio.get_running_loop().time() + _CONTROLLER_S
    async with await process.join(STARTING, _Starting(starts)) as member:
        controller = member.handle(ControllerApi, "controller", 0, timeout=_ASK_S)
        info = EngineInfo(engine=process.index, incarnation=member.info.incarnation)
        while True:
            try:
                if await controller.may_start(info):
                    break
                deadline = asyncio.get_running_loop().time() + _CONTROLLER_S
            except StaleGeneration:
                raise
            except (ActorError, CallTimeout):
                # The controller may not be there yet, or be busy with the trainer's setup.
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)
        yield
