"""The caller's end of a connection: sends calls, takes in replies, and notices at once if the member dies.

A link is one TCP connection to one life of a member. It never reconnects: when the connection ends, its
pending calls fail with MemberLost, and the next call makes a new link. So no message can reach another
process that got the same port, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Literal

import msgspec
import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.actor import Method
from verst.runtime.actors.codec import Buffer
from verst.runtime.actors.connection import (
    ENDINGS,
    MAX_PENDING,
    OTHER_KEYS,
    connected_socket,
    monitored,
)
from verst.runtime.actors.deadlines import Deadlines
from verst.runtime.actors.directory import MemberInfo
from verst.runtime.actors.errors import (
    ActorError,
    CallRefused,
    CallTimeout,
    MemberLost,
    RemoteError,
    StaleGeneration,
)
from verst.runtime.actors.outbox import Outbox
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.security import Keys
from verst.runtime.actors.shared_memory import Held
from verst.runtime.actors.streams import Incoming

_calls = itertools.count(1)  # for all links, so that a member never gets the same number from us twice


class Sender(msgspec.Struct, frozen=True):
    """The sender's fields of an envelope."""

    generation: int
    incarnation: str
    name: str
    node: str  # its `shared_memory.node_key`


class _Pending(msgspec.Struct, eq=False):
    future: asyncio.Future[Any]
    method: Method
    timeout_s: float
    incoming: Incoming | None = None  # for a stream
    held: Held | None = None  # memory that the member has not mapped yet


class Link:
    """Calls to one life of one member. `on_end(link, reason, refused)` is called once, when the link ends.

    `on_stale` is called when a peer seems to belong to a later generation.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        keys: Keys,
        sender: Sender,
        target: MemberInfo,
        on_end: Callable[[Link, str, bool], None],
        on_stale: Callable[[], None],
    ) -> None:
        self.target = target
        self.connected = False  # whether it ever was
        self.sound = True  # False once the member has sent something that is not a message
        self.ended: str | None = None
        self._sender = sender
        self._on_end = on_end
        self._on_stale = on_stale
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._room = asyncio.Semaphore(MAX_PENDING)
        self._deadlines: Deadlines[int] = Deadlines(self._expire)
        self._near = target.node == sender.node
        socket = connected_socket(context)
        keys.unlock(socket)
        monitor = monitored(context, socket, *ENDINGS, zmq.EVENT_HANDSHAKE_SUCCEEDED)
        socket.connect(target.endpoint)
        self._raw = socket
        self._monitor = PolledSocket(monitor, self._on_event, head=2, max_frames=2)
        self._socket = PolledSocket(socket, self._on_message, head=2, max_frames=wire.MAX_FRAMES)
        self._outbox = Outbox(self._socket, self._unsent)

    async def call(self, method: Method, arguments: msgspec.Struct, timeout_s: float, deadline: float) -> Any:
        """Makes one call, which ends by `deadline` (loop time). `timeout_s` is only for error messages.

        Raises an ActorError. Cancelling the task cancels the call at the member.
        """
        pending = _Pending(self._loop.create_future(), method, timeout_s)
        await self._take_place(pending, deadline)
        call = self._begin(pending, arguments, deadline)
        try:
            return await pending.future
        except asyncio.CancelledError:
            self._cancel(call)
            raise
        finally:
            self._is_over(call)

    async def stream(
        self, method: Method, arguments: msgspec.Struct, timeout_s: float, deadline: float
    ) -> AsyncGenerator[Any]:
        """Makes one call whose result comes item by item. Raises as `call`; ending it early cancels it."""
        pending = _Pending(self._loop.create_future(), method, timeout_s)
        await self._take_place(pending, deadline)
        incoming = pending.incoming = Incoming(pending.future)
        call = self._begin(pending, arguments, deadline)
        try:
            async with contextlib.aclosing(incoming.take(lambda n: self._more(call, n))) as items:
                async for item in items:
                    yield item
        finally:
            if not pending.future.done():
                self._cancel(call)
            # Retrieves the exception: asyncio complains about one that is never retrieved.
            pending.future.cancel() or pending.future.exception()
            self._is_over(call)

    async def _take_place(self, pending: _Pending, deadline: float) -> None:
        """Takes one of the link's MAX_PENDING places, and waits for it until the deadline."""
        if not self._room.locked():
            await self._room.acquire()
            return
        try:
            async with asyncio.timeout_at(deadline):
                await self._room.acquire()
        except TimeoutError:
            what = f"{self._what(pending)} (waiting behind {MAX_PENDING} others)"
            raise CallTimeout(what, pending.timeout_s) from None

    def _begin(self, pending: _Pending, arguments: msgspec.Struct, deadline: float) -> int:
        """Sends the call and returns its number. Answers and the deadline are handled until `_is_over`."""
        call = next(_calls)
        try:
            if self.ended is not None:
                raise MemberLost(self.target.name, self.ended)
            left_s = max(deadline - self._loop.time(), 0.0)
            envelope = self._envelope("call", call, pending.method.name, left_s)
            self._pending[call] = pending
            self._deadlines.set(call, deadline)
            pending.held = self._outbox.send(envelope, arguments, shares=self._near)
        except BaseException as error:
            self._is_over(call)
            if isinstance(error, (TypeError, ValueError)):
                raise type(error)(f"{self._what(pending)}: {error}") from error
            raise
        return call

    def _is_over(self, call: int) -> None:
        self._deadlines.drop(call)
        pending = self._pending.pop(call, None)
        if pending is not None and pending.held is not None:
            pending.held.release()
        self._room.release()

    def forgive(self, seconds: float) -> None:
        """Gives all calls so much longer, because this process itself did not run."""
        self._deadlines.forgive(seconds)

    def end(self, reason: str, refused: bool = False) -> None:
        """Closes the connection; pending calls fail with MemberLost. Does nothing if the link has ended."""
        if self.ended is not None:
            return
        self.ended = reason
        self._raw.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._deadlines.close()
        for pending in self._pending.values():
            _fail(pending, MemberLost(self.target.name, f"{reason} during {self._what(pending)}"))
        self._on_end(self, reason, refused)

    def _what(self, pending: _Pending) -> str:
        return f"{self.target.name}.{pending.method.name}"

    def _envelope(
        self,
        kind: Literal["call", "cancel", "more", "taken"],
        call: int,
        method: str = "",
        timeout_s: float = 0.0,
    ) -> wire.Envelope:
        return wire.Envelope(
            wire.PROTOCOL,
            kind,
            call,
            self._sender.generation,
            self._sender.incarnation,
            self._sender.name,
            self.target.incarnation,
            method,
            timeout_s,
            self._sender.node,
        )

    def _unsent(self, _: int) -> None:
        self.end(ENDINGS[zmq.EVENT_DISCONNECTED])  # the connection is gone; its event is on the way

    def _expire(self, call: int) -> None:
        pending = self._pending.get(call)
        if pending is not None and not pending.future.done():
            self._cancel(call)
            _fail(pending, CallTimeout(self._what(pending), pending.timeout_s))

    def _cancel(self, call: int) -> None:
        if self.ended is None:
            self._outbox.send_bare(self._envelope("cancel", call))

    def _more(self, call: int, taken: int) -> None:
        if self.ended is None:
            self._outbox.send(self._envelope("more", call), taken)

    def _on_event(self, frames: list[Any]) -> None:
        event, _value = struct.unpack("=HI", frames[0])
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected = True
        elif event in ENDINGS:
            self._socket.drain()  # replies that arrived before the end
            if event in OTHER_KEYS:
                self._on_stale()  # the keys may belong to a later life of the run
            self.end(ENDINGS[event], refused=event == zmq.EVENT_CLOSED and not self.connected)

    def _on_message(self, frames: list[Any]) -> None:
        try:
            messages = wire.read(frames)
        except wire.Malformed as error:
            self.sound = False
            self.end(f"it answered with something that is not a message: {error}")
            return
        for envelope, message in messages:
            try:
                self._take_in(envelope, message)
            finally:
                if envelope.shared and self.ended is None:
                    self._outbox.send_bare(self._envelope("taken", envelope.call))

    def _take_in(self, envelope: wire.Envelope, frames: Sequence[Buffer]) -> None:
        pending = self._pending.get(envelope.call)
        if pending is None or pending.future.done():
            return  # its caller has given up
        if pending.held is not None:
            pending.held.release(answered=True)
            pending.held = None
        shared = envelope.shared
        try:
            if envelope.kind == "item":
                self._item(pending, envelope.call, wire.read_body(pending.method.result, frames, shared))
            elif envelope.kind == "reply":
                result = type(None) if pending.method.streams else pending.method.result
                pending.future.set_result(wire.read_body(result, frames, shared))
            else:
                fault = wire.read_body(wire.Fault, frames)
                _fail(pending, self._error(pending, fault, envelope))
        except wire.Malformed as error:
            _fail(
                pending,
                CallRefused(f"{self._what(pending)}: its result is not {pending.method.result}: {error}"),
            )

    def _item(self, pending: _Pending, call: int, item: Any) -> None:
        if pending.incoming is None or not pending.incoming.came(item):
            self._cancel(call)
            _fail(pending, CallRefused(f"{self._what(pending)}: it sent an item that was not requested"))

    def _error(self, pending: _Pending, fault: wire.Fault, envelope: wire.Envelope) -> ActorError:
        if fault.kind == "raised":
            return RemoteError(self._what(pending), fault.type, fault.message, fault.traceback)
        if fault.kind == "not_here":
            return MemberLost(self.target.name, fault.message)
        if fault.kind == "stale":
            if envelope.generation > self._sender.generation:
                self._on_stale()
            return StaleGeneration(f"{self._what(pending)}: {fault.message}")
        return CallRefused(f"{self._what(pending)}: {fault.message}")


def _fail(pending: _Pending, error: ActorError) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)
