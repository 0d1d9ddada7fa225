"""Calls the trainer's ranks together. A call fails at once when the first rank fails."""

from __future__ import annotations

import asyncio
from typing import Any

from verst.runtime.actors import Member
from verst.runtime.messages.apis import TrainerApi


class Trainers:
    """All ranks of the trainer.

    Unlike an ActorGroup, it does not wait for the other ranks when one raises or dies: they may be stuck in a
    collective operation that the lost rank will never join.
    """

    def __init__(self, member: Member, world_size: int, timeout_s: float) -> None:
        self._ranks = [member.handle(TrainerApi, "trainer", rank, timeout_s) for rank in range(world_size)]

    async def all(self, method: str, *args: Any) -> list[Any]:
        """Calls all ranks. Returns their results in rank order; raises the first failure (ActorError) at once."""
        tasks = [asyncio.ensure_future(getattr(rank, method)(*args)) for rank in self._ranks]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def __call__(self, method: str, *args: Any) -> Any:
        """Calls all ranks. Returns rank 0's result once all have returned."""
        return (await self.all(method, *args))[0]
