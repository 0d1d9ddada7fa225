"""Defines `Member`, by which a process joins the run, serves an actor, finds other members and calls them.

Its parts: `membership.py` keeps its own lease, `presence.py` finds others, `calls.py` calls them over the
connections of `links.py`, and `server.py` answers.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar, cast

from verst.runtime.actors.actor import Actor
from verst.runtime.actors.calls import Calls
from verst.runtime.actors.directory import Directory, MemberInfo, check_role
from verst.runtime.actors.errors import ActorError, CallTimeout, StaleGeneration
from verst.runtime.actors.following import Following
from verst.runtime.actors.handle import ActorGroup, Handle
from verst.runtime.actors.host_address import resolve_host
from verst.runtime.actors.link import Sender
from verst.runtime.actors.links import Links
from verst.runtime.actors.membership import Membership
from verst.runtime.actors.presence import Presence
from verst.runtime.actors.security import Keys, read_keys
from verst.runtime.actors.server import Server
from verst.runtime.actors.shared_memory import node_key
from verst.runtime.actors.watchdog import watch
from verst.runtime.actors.zmq_context import end_context, new_context
from verst.runtime.run.folder import RunFolder

A = TypeVar("A", bound=Actor)
T = TypeVar("T")

LEASE_S = 30.0
CALL_TIMEOUT_S = 60.0
_FOLLOW_S = 1.0
_RESULT_GRACE_S = 2.0


class Member:
    """One member of the run, made by `join`.

    It belongs to the asyncio loop that joined. Other threads may only use `call_blocking` and `submit`.
    """

    def __init__(self, folder: RunFolder, keys: Keys, me: Sender, lease_s: float, timeout_s: float) -> None:
        self._keys = keys
        self._me = me
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        self._follow_s = min(_FOLLOW_S, lease_s / 10)
        self._loop = asyncio.get_running_loop()
        self._context = new_context()
        self._membership = Membership(folder, me.name, me.generation, lease_s, self._withdraw)
        directory = Directory(folder, me.generation, lease_s)
        self._following = Following(directory)
        self._links = Links(self._context, keys, me, self._membership, directory, self._following)
        self._presence = Presence(
            self._membership, directory, self._following, self._links, self._follow_s, folder.members
        )
        self._calls = Calls(self._presence, self._links)
        self._tasks: list[asyncio.Task[None]] = []
        self.info: MemberInfo
        self._stop_watching: Callable[[], None]
        self._server: Server

    @staticmethod
    async def join(
        folder: RunFolder,
        role: str,
        index: int,
        actor: Actor | None,
        host: str = "127.0.0.1",
        details: dict[str, str | int] | None = None,
        *,
        timeout: float = CALL_TIMEOUT_S,
        lease: float = LEASE_S,
    ) -> Member:
        """Joins the run as member `index` of `role`, and serves `actor` (None: nothing) on a free port.

        `host` is one address of this node. `details` is shown to anyone who lists the members. `timeout` (s)
        is the default of this member's calls. `lease` (s) must be the same for all members of a run. Raises
        FileNotFoundError if the run has no keys yet (`create_keys`), and StaleGeneration if the run has gone
        on without the node agent that started this process.
        """
        check_role(role)
        address = resolve_host(host)
        name = f"{role}-{index}"
        generation = await asyncio.to_thread(_our_generation, folder, name)
        keys = await asyncio.to_thread(read_keys, folder, generation)
        me = Sender(generation, secrets.token_hex(8), name, node_key())
        member = Member(folder, keys, me, lease, timeout)
        try:
            await member._advertise(role, index, actor, address, details or {})
        except BaseException:
            member._context.destroy(linger=0)
            raise
        return member

    async def _advertise(
        self, role: str, index: int, actor: Actor | None, host: str, details: dict[str, str | int]
    ) -> None:
        me = self._me
        self._server = Server(self._context, self._keys, me, actor, host, self._membership.suspect_stale)
        self.info = MemberInfo(
            role=role,
            index=index,
            generation=me.generation,
            incarnation=me.incarnation,
            host=host,
            port=self._server.port,
            pid=os.getpid(),
            node=me.node,
            details=details,
        )
        try:
            await self._membership.advertise(self.info)
        except BaseException:
            self._server.close()
            raise
        self._tasks = [
            asyncio.create_task(self._membership.keep_lease()),
            asyncio.create_task(self._links.follow(self._follow_s)),
            asyncio.create_task(self._links.notice_pauses()),
        ]
        self._stop_watching = watch(me.name, self._lease_s)

    async def __aenter__(self) -> Self:
        """For `async with await Member.join(…) as member:`, which leaves at its end."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    # -- other members

    def handle(self, actor: type[A], role: str, index: int, timeout: float | None = None) -> A:
        """An object with the methods of `actor` that calls one member. Each call ends within `timeout` seconds.

        Calls read only that member's file and never list the whole folder.
        """
        timeout_s = self._timeout_s if timeout is None else timeout
        return cast(A, Handle(actor, role, index, timeout_s, self._calls))

    def group(
        self, actor: type[A], role: str, timeout: float | None = None, indices: Sequence[int] | None = None
    ) -> ActorGroup[A]:
        """An object that calls all members of a role: those present at each call, or exactly `indices`.

        With `indices`, calls read only those members' files, like handles.
        """
        if indices is None:
            self._following.role(role)
        timeout_s = self._timeout_s if timeout is None else timeout
        return ActorGroup(actor, role, timeout_s, self._calls, self._presence.present, indices)

    def members(self, role: str) -> list[MemberInfo]:
        """The members of a role that were present at most a second ago, by index.

        The first call for a role gives an empty list and makes this member follow the role: from then on it
        lists the folder every second. `wait_for`, and `group` without indices, also make it follow a role.
        """
        return self._presence.members(role)

    async def present(self, role: str) -> list[MemberInfo]:
        """The members of a role that are present now, by index."""
        return await self._presence.present(role)

    async def find(self, role: str, index: int, timeout: float = 10.0) -> MemberInfo:
        """Finds one member as it is now. Raises MemberLost if it is not present."""
        return await self._presence.find(role, index, f"{role}-{index}", timeout)

    async def wait_for_one(self, role: str, index: int, timeout: float) -> MemberInfo:
        """Waits until this member is present, by reading only its file. Raises CallTimeout."""
        return await self._presence.wait_for_one(role, index, timeout)

    async def wait_for(self, role: str, count: int, timeout: float) -> list[MemberInfo]:
        """Waits until members 0 … count-1 of a role are present. Raises CallTimeout naming those missing."""
        return await self._presence.wait_for(role, count, timeout)

    @property
    def counts(self) -> Counter[str]:
        """How many messages our server took and refused, by reason: "calls", "stale", "malformed_body", …"""
        return self._server.counts

    # -- from other threads

    def call_blocking(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Runs a coroutine on the member's loop from another thread and waits for it.

        Raises CallTimeout after `timeout` seconds.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            coroutine.close()
            raise RuntimeError(
                "call_blocking on the member's own loop would wait for ever: use await instead"
            )
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except TimeoutError:
            if future.done():  # raised by the coroutine
                raise
            future.cancel()
            raise CallTimeout(f"call_blocking({coroutine!r})", timeout) from None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine on the member's loop from another thread. Returns a future to watch it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    # -- the end

    async def leave(self) -> None:
        """Leaves the run. Calls that run here get two seconds to finish. Harmless if it has left already."""
        await self._membership.leave()

    async def wait_left(self) -> ActorError | None:
        """Waits until the member has left. Returns why (fenced off, or replaced), or None after `leave`."""
        return await self._membership.wait_left()

    async def _withdraw(self) -> None:
        await self._server.finish(_RESULT_GRACE_S)
        self._stop_watching()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._membership.remove()
        self._server.close()
        self._links.end("this process leaves the run")
        await end_context(self._context, self.info.name)


def _our_generation(folder: RunFolder, name: str) -> int:
    """The life of the run that this process was started for. Raises StaleGeneration if it is over.

    It is the agent's life or, without an agent, the present one.
    """
    current = folder.generation
    ours = int(os.environ.get("VERST_GENERATION", current))
    if ours < current:
        raise StaleGeneration(f"{name} was started for life {ours}; the run is at life {current}")
    return ours
