"""The trainer's ranks as one: every call is collective, and the first rank that fails fails it at once."""

from __future__ import annotations

import asyncio
from typing import Any

from verst.runtime.actors import Member
from verst.runtime.messages.apis import TrainerApi


class Trainers:
    """Calls all ranks together.

    Unlike an ActorGroup it does not wait for the others when one rank raises or dies: they may be stuck in
    a collective that the lost rank will never join.
    """

    def __init__(self, member: Member, world_size: int, timeout_s: float) -> None:
        self._ranks = [member.handle(TrainerApi, "trainer", rank, timeout_s) for rank in range(world_size)]

    async def all(self, method: str, *args: Any) -> list[Any]:
        """Every rank's result, in rank order. Raises the first failure (ActorError) as soon as it is known."""
        tasks = [asyncio.ensure_future(getattr(rank, method)(*args)) for rank in self._ranks]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def __call__(self, method: str, *args: Any) -> Any:
        """Rank 0's result, once all ranks have given theirs."""
        return (await self.all(method, *args))[0]
