"""This process's own membership in the run: its file and lease, its generation, and how it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from verst.runtime.actors.directory import MemberInfo, Registration
from verst.runtime.actors.errors import ActorError, MemberLost, StaleGeneration
from verst.runtime.run.folder import RunFolder

log = logging.getLogger(__name__)


class Membership:
    """One process's membership, from `advertise` to its end. Belongs to the asyncio loop that made it."""

    def __init__(
        self,
        folder: RunFolder,
        name: str,
        generation: int,
        lease_s: float,
        withdraw: Callable[[], Awaitable[None]],
    ) -> None:
        """`withdraw` is awaited once, when the membership ends for any reason."""
        self._folder = folder
        self._name = name
        self._generation = generation
        self._lease_s = lease_s
        self._withdraw = withdraw
        self._loop = asyncio.get_running_loop()
        self._registration: Registration
        self._checking_generation: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._left: asyncio.Future[ActorError | None] = self._loop.create_future()

    async def advertise(self, info: MemberInfo) -> None:
        """Writes the member's file, by which the others find it."""
        self._registration = Registration(self._folder, info)
        await asyncio.to_thread(self._registration.write)

    async def keep_lease(self) -> None:
        """Renews the lease, and looks at the run's generation, until the membership ends."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await asyncio.to_thread(self._registration.renew)
            except MemberLost as error:
                self._begin_leaving(error)
                return
            except (
                OSError
            ) as error:  # shared file systems fail at times; the others judge when the lease is over
                log.warning("%s could not renew its lease: %s", self._name, error)
            await self._check_generation()

    async def remove(self) -> None:
        """Removes the member's file."""
        try:
            await asyncio.to_thread(self._registration.remove)
        except OSError as error:
            log.warning("%s could not remove its file: %s", self._name, error)

    # -- the generation

    def suspect_stale(self) -> None:
        """Checks the run folder now, since a peer claims a later generation. The claim alone proves nothing."""
        if self._checking_generation is None or self._checking_generation.done():
            self._checking_generation = self._loop.create_task(self._check_generation())

    async def _check_generation(self) -> None:
        try:
            current = await asyncio.to_thread(lambda: self._folder.generation)
        except OSError as error:
            log.warning("%s could not read the run's life: %s", self._name, error)
            return
        if current > self._generation:
            mine = f"{self._name} leaves: it is of life {self._generation}"
            self._begin_leaving(StaleGeneration(f"{mine}, the run of life {current}"))

    # -- the end

    @property
    def is_ending(self) -> bool:
        """Whether the end has begun."""
        return self._leaving is not None

    def check(self) -> None:
        """Raises MemberLost once the end has begun."""
        if self.is_ending:
            raise MemberLost(self._name, "this process has left the run")

    async def leave(self) -> None:
        """Ends the membership and waits until it has ended. Harmless if it has ended already."""
        self._begin_leaving(None)
        await asyncio.shield(self._left)

    async def wait_left(self) -> ActorError | None:
        """Waits for the end. Returns its reason, or None if it was `leave`."""
        return await asyncio.shield(self._left)

    def _begin_leaving(self, reason: ActorError | None) -> None:
        if self._leaving is None:
            if reason is not None:
                log.error("%s", reason)
            self._leaving = self._loop.create_task(self._leave(reason))

    async def _leave(self, reason: ActorError | None) -> None:
        try:
            await self._withdraw()
        finally:
            self._left.set_result(reason)
