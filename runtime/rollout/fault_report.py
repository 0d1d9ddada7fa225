"""Reports a fault of the recipe that shows in a worker before its engine starts: a hook that cannot be imported.

On one machine the worker's node agent ends the run. On a cluster an engine's agent cannot, so the controller must.
"""

from __future__ import annotations

import asyncio
import logging

from verst.runtime.actors import ActorError, MemberLost
from verst.runtime.messages.apis import STARTING, ControllerApi, RolloutApi
from verst.runtime.node.member_process import MemberProcess
from verst.runtime.rollout.config import RolloutConfig

log = logging.getLogger(__name__)

_CALL_S = 30.0
_AGAIN_S = 2.0


async def tell_controller(process: MemberProcess, reason: str) -> None:
    """Tells the controller that the recipe is at fault, which ends the run. Best effort."""
    try:
        patience = process.folder.section("rollout", RolloutConfig).wait_for_trainer_s
        async with asyncio.timeout(patience), await process.join(STARTING, _Telling()) as member:
            controller = member.handle(ControllerApi, "controller", 0, timeout=_CALL_S)
            while True:
                try:
                    return await controller.stop_for_good(reason)
                except MemberLost:  # it may not be there yet
                    await asyncio.sleep(_AGAIN_S)
    except (ActorError, TimeoutError, OSError) as error:
        log.warning("the controller could not be told: %s", error)


class _Telling(RolloutApi):
    """Represents a worker that only reports."""
