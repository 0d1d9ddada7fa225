"""A process's membership in the run: it serves an actor, finds the others and calls them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar, cast

import msgspec

from verst.runtime.actors.actor import Actor, Method
from verst.runtime.actors.directory import Directory, MemberInfo, Registration, check_role
from verst.runtime.actors.errors import ActorError, CallTimeout, MemberLost, StaleGeneration
from verst.runtime.actors.following import Following
from verst.runtime.actors.handle import ActorGroup, Handle
from verst.runtime.actors.host_address import resolve_host
from verst.runtime.actors.link import Link, Sender
from verst.runtime.actors.memory_pool import KEPT_S, POOL
from verst.runtime.actors.security import Keys, read_keys
from verst.runtime.actors.server import Server
from verst.runtime.actors.shared_memory import node_key
from verst.runtime.actors.watchdog import watch
from verst.runtime.actors.zmq_context import end_context, new_context
from verst.runtime.run.folder import RunFolder

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Actor)
T = TypeVar("T")

LEASE_S = 30.0
CALL_TIMEOUT_S = 60.0
_FOLLOW_S = 1.0
_RESULT_GRACE_S = 2.0


class Member:
    """Made by `join`. Belongs to the asyncio loop that joined; only `call_blocking` is for other threads."""

    def __init__(
        self, folder: RunFolder, keys: Keys, generation: int, lease_s: float, timeout_s: float
    ) -> None:
        self._folder = folder
        self._keys = keys
        self._generation = generation
        self._lease_s = lease_s
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._context = new_context()
        self._directory = Directory(folder, generation, lease_s)
        self._following = Following(self._directory)
        self._follow_s = min(_FOLLOW_S, lease_s / 10)
        self._links: dict[str, Link] = {}  # by the target's incarnation
        self._tasks: list[asyncio.Task[None]] = []
        self._checking_generation: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._left: asyncio.Future[ActorError | None] = self._loop.create_future()
        self.info: MemberInfo
        self._me: Sender
        self._registration: Registration
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
        """Binds an ephemeral port on `host`, one address of this node, serves `actor` and advertises it.

        `details` is shown to whoever lists the members. `timeout` (s) is the default of this member's calls.
        `lease` (s) must be the same for all members of a run. Raises FileNotFoundError when the run has no
        keys yet (`create_keys`), StaleGeneration when it has gone on without the node agent that started us.
        """
        check_role(role)
        address = resolve_host(host)
        generation = await asyncio.to_thread(_our_generation, folder, f"{role}-{index}")
        keys = await asyncio.to_thread(read_keys, folder, generation)
        member = Member(folder, keys, generation, lease, timeout)
        try:
            await member._advertise(role, index, actor, address, details or {})
        except BaseException:
            member._context.destroy(linger=0)
            raise
        return member

    async def _advertise(
        self, role: str, index: int, actor: Actor | None, host: str, details: dict[str, str | int]
    ) -> None:
        me = self._me = Sender(self._generation, secrets.token_hex(8), f"{role}-{index}", node_key())
        self._server = Server(self._context, self._keys, me, actor, host, self._suspect_stale)
        self.info = MemberInfo(
            role=role,
            index=index,
            generation=self._generation,
            incarnation=me.incarnation,
            host=host,
            port=self._server.port,
            pid=os.getpid(),
            node=me.node,
            details=details,
        )
        self._registration = Registration(self._folder, self.info)
        try:
            await asyncio.to_thread(self._registration.write)
        except BaseException:
            self._server.close()
            raise
        self._tasks = [asyncio.create_task(self._renew_lease()), asyncio.create_task(self._follow_members())]
        self._stop_watching = watch(self.info.name, self._lease_s)

    async def __aenter__(self) -> Self:
        """`async with await Member.join(…) as member:` leaves at the end."""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    # -- whom there is to call

    def handle(self, actor: type[A], role: str, index: int, timeout: float | None = None) -> A:
        """One member, as an object with the actor's methods; every call ends within `timeout` s.

        Calls look at the member's own file, never at the whole folder.
        """
        return cast(A, Handle(actor, role, index, self._timeout_s if timeout is None else timeout, self))

    def group(
        self, actor: type[A], role: str, timeout: float | None = None, indices: Sequence[int] | None = None
    ) -> ActorGroup[A]:
        """All members of a role, whoever is present at each call, or exactly `indices` (as by handles)."""
        if indices is None:
            self._following.role(role)
        timeout_s = self._timeout_s if timeout is None else timeout
        return ActorGroup(actor, role, timeout_s, self, self.present, indices)

    def members(self, role: str) -> list[MemberInfo]:
        """Who is present in a role, by index, as of at most a second ago.

        The first question about a role gives an empty list, but from then on the role is followed, as it is
        from the first `wait_for`, or `group` without indices: the folder is listed every second.
        """
        self._following.role(role)
        return self._directory.members(role) if self._following.lists(role) else []

    async def present(self, role: str) -> list[MemberInfo]:
        """Who is present in a role now, by index."""
        await self._following.role_read(role)
        return self._directory.members(role)

    async def find(self, role: str, index: int, timeout: float = 10.0) -> MemberInfo:
        """One member as it is now. Raises MemberLost when it is not present."""
        return await self._find(role, index, f"{role}-{index}", timeout)

    async def wait_for_one(self, role: str, index: int, timeout: float) -> MemberInfo:
        """Waits until this member is present, looking at its file alone. Raises CallTimeout."""
        name = f"{role}-{index}"
        deadline = self._loop.time() + timeout
        while True:
            left_s = deadline - self._loop.time()
            try:
                return await self._find(role, index, name, max(left_s, 0.1))
            except MemberLost as error:
                if self._leaving is not None:
                    raise
                if left_s <= 0:
                    raise CallTimeout(f"waiting for {name} ({error.reason}):", timeout) from None
            await asyncio.sleep(_pause_s(timeout, left_s, self._follow_s))

    async def wait_for(self, role: str, count: int, timeout: float) -> list[MemberInfo]:
        """Waits until members 0 … count-1 of a role are present. Raises CallTimeout naming those missing."""
        self._following.role(role)
        deadline = self._loop.time() + timeout
        while True:
            await self._following.read_roles()
            present = [info for info in self._directory.members(role) if info.index < count]
            if len(present) == count:
                return present
            if (left_s := deadline - self._loop.time()) <= 0:
                missing = sorted(set(range(count)) - {info.index for info in present})
                names = ", ".join(f"{role}-{index}" for index in missing[:10])
                more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
                raise CallTimeout(f"waiting for {count} members of {role}: missing {names}{more}:", timeout)
            await asyncio.sleep(_pause_s(timeout, left_s, 0.2))

    @property
    def counts(self) -> Counter[str]:
        """What our server did and refused, by reason: "calls", "duplicate", "malformed_body", "stale", …"""
        return self._server.counts

    # -- calls

    def call_blocking(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Runs a coroutine on the member's loop from another thread and waits for it, at most `timeout` s."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            coroutine.close()
            raise RuntimeError("call_blocking on the member's own loop would wait for itself: await instead")
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except TimeoutError:
            if future.done():  # raised by the coroutine
                raise
            future.cancel()
            raise CallTimeout(f"call_blocking({coroutine!r})", timeout) from None

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine on the member's loop from another thread, which can watch it while it runs."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _call(
        self, role: str, index: int, method: Method, arguments: msgspec.Struct, timeout: float
    ) -> Any:
        deadline = self._loop.time() + timeout
        link = await self._link(role, index, method, timeout)
        return await link.call(method, arguments, timeout, deadline)

    async def _stream(
        self, role: str, index: int, method: Method, arguments: msgspec.Struct, timeout: float
    ) -> AsyncGenerator[Any]:
        deadline = self._loop.time() + timeout
        link = await self._link(role, index, method, timeout)
        async with contextlib.aclosing(link.stream(method, arguments, timeout, deadline)) as items:
            async for item in items:
                yield item

    async def _link(self, role: str, index: int, method: Method, timeout: float) -> Link:
        target = await self._find(role, index, f"{role}-{index}.{method.name}", timeout)
        return self._links.get(target.incarnation) or self._connect(target)

    async def _find(self, role: str, index: int, what: str, timeout: float) -> MemberInfo:
        self._check_present()
        try:
            target = self._directory.find(role, index)
        except MemberLost:
            pass  # it may have joined since its file was read
        else:
            if target.incarnation in self._links or self._following.lists(role):  # so we follow it
                return target
        try:
            async with asyncio.timeout(timeout):
                await self._following.read(f"{role}-{index}")
        except TimeoutError:
            raise CallTimeout(f"{what} (reading {self._folder.members})", timeout) from None
        return self._directory.find(role, index)

    def _check_present(self) -> None:
        if self._leaving is not None:
            raise MemberLost(self.info.name, "this process has left the run")

    def _connect(self, target: MemberInfo) -> Link:
        self._check_present()  # a socket made after the leaving would keep the ZeroMQ context open
        link = Link(self._context, self._keys, self._me, target, self._on_link_end, self._suspect_stale)
        self._links[target.incarnation] = link
        return link

    def _on_link_end(self, link: Link, reason: str, refused: bool) -> None:
        if self._links.get(link.target.incarnation) is link:
            del self._links[link.target.incarnation]
        if refused:
            self._directory.mark_dead(link.target.incarnation)
        elif not (link.connected and link.sound) or self._leaving is not None:
            return
        elif self._directory.absence(link.target) is None:
            self._connect(link.target)  # a broken line, or is it dead? If so its port refuses, at once
            self._following.suspect(link.target.name)

    # -- presence, ours and theirs

    async def _renew_lease(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await asyncio.to_thread(self._registration.renew)
            except MemberLost as error:
                self._begin_leaving(error)
                return
            except OSError as error:  # a shared file system has bad minutes; the others judge how many
                log.warning("%s could not renew its lease: %s", self.info.name, error)
            await self._check_generation()

    async def _follow_members(self) -> None:
        while True:
            try:
                await self._following.keep_up([link.target for link in self._links.values()])
            except OSError as error:
                log.warning("%s could not read the members' files: %s", self.info.name, error)
            for link in list(self._links.values()):
                if (reason := self._directory.absence(link.target)) is not None:
                    link.end(reason)
            POOL.tidy(KEPT_S)
            await asyncio.sleep(self._follow_s)

    def _suspect_stale(self) -> None:
        """A peer speaks of a later generation. That proves nothing: look in the folder, now."""
        if self._checking_generation is None or self._checking_generation.done():
            self._checking_generation = self._loop.create_task(self._check_generation())

    async def _check_generation(self) -> None:
        try:
            current = await asyncio.to_thread(lambda: self._folder.generation)
        except OSError as error:
            log.warning("%s could not read the run's generation: %s", self.info.name, error)
            return
        if current > self._generation:
            mine = f"{self.info.name} leaves: it is of generation {self._generation}"
            self._begin_leaving(StaleGeneration(f"{mine}, the run of {current}"))

    # -- the end

    async def leave(self) -> None:
        """Withdraws the member: calls that run here get two seconds to finish. Harmless when it has left."""
        self._begin_leaving(None)
        await asyncio.shield(self._left)

    async def wait_left(self) -> ActorError | None:
        """Waits for the end of the membership; the reason if it was not `leave`: fenced off, or replaced."""
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

    async def _withdraw(self) -> None:
        await self._server.finish(_RESULT_GRACE_S)
        self._stop_watching()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await asyncio.to_thread(self._registration.remove)
        except OSError as error:
            log.warning("%s could not remove its file: %s", self.info.name, error)
        self._server.close()
        for link in list(self._links.values()):
            link.end("this process leaves the run")
        await end_context(self._context, self.info.name)


def _pause_s(timeout: float, left_s: float, most_s: float) -> float:
    """Between two looks at who is there: a tenth of the time that we have waited, so that it costs little to wait."""
    return min(max(0.01, (timeout - left_s) / 10), most_s, max(0.0, left_s))


def _our_generation(folder: RunFolder, name: str) -> int:
    """The life of the run that this process was started for: its agent's, or without an agent the present."""
    current = folder.generation
    ours = int(os.environ.get("VERST_GENERATION", current))
    if ours < current:
        raise StaleGeneration(f"{name} was started for generation {ours}; the run is at {current}")
    return ours
