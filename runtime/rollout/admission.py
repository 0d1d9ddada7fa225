"""How an engine that shares its GPUs with the trainer starts: when the controller says that it may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from verst.runtime.actors import ActorError, CallTimeout, StaleGeneration
from verst.runtime.messages.apis import STARTING, ControllerApi, RolloutApi
from verst.runtime.messages.jobs import EngineInfo
from verst.runtime.node.member_process import MemberProcess

_ASK_S = 30.0  # the controller answers within 10 s even when it has nothing to say
_CONTROLLER_S = 600.0  # for the controller to be there
_AGAIN_S = 1.0


class _Starting(RolloutApi):
    """Stands in for the worker while its engine starts."""

    def __init__(self, starts: asyncio.Task[None]) -> None:
        self._starts = starts

    async def abandon(self, reason: str) -> None:
        self._starts.cancel(reason)


@asynccontextmanager
async def admitted(process: MemberProcess) -> AsyncIterator[None]:
    """Enters when the engine may start; leaves when it has started, and is about to say that it serves.

    As a member of the run inside, so that the controller sees it die. Raises ActorError when the controller is
    lost, and CancelledError with the reason when the controller wants the GPUs back.
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
                # It may not be there yet, or be at the trainer's setup.
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_S)
        yield
