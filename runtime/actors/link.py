"""The caller's end of one connection: calls out, replies in, and death noticed at once.

A link is one TCP connection to one life of a member. It never reconnects: when the connection ends, so
do its pending calls (MemberLost), and the next call makes a new link. So no message can reach another
process that got the same port, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Literal

import msgspec
import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.actor import Method
from verst.runtime.actors.directory import MemberInfo
from verst.runtime.actors.errors import (
    ActorError,
    CallRefused,
    CallTimeout,
    MemberLost,
    RemoteError,
    StaleGeneration,
)
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.security import Keys
from verst.runtime.actors.shared_memory import Held
from verst.runtime.actors.streams import WINDOW, Incoming
from verst.runtime.codec import Buffer

_calls = itertools.count(1)  # over all links, so that a member never gets a number from us twice
MAX_PENDING = 1024  # calls of one link in flight; further ones wait for their turn
# Messages of one connection in each direction: twice what streams may fill.
MAX_QUEUED = 2 * MAX_PENDING * WINDOW
HANDSHAKE_MS = 10_000  # for TCP, and as much for CURVE: who has not shown a key by then is cut off

_ENDINGS = {
    zmq.EVENT_CLOSED: "its port refuses connections",
    zmq.EVENT_DISCONNECTED: "the connection ended",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not accept the key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "its key is not this generation's",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed: its key is not this generation's, or it died",
}
_OTHER_KEYS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}


class Sender(msgspec.Struct, frozen=True):
    """The calling member, as its envelopes say."""

    generation: int
    incarnation: str
    name: str
    node: str  # as `shared_memory.node_key` gives it


class _Pending(msgspec.Struct, eq=False):
    future: asyncio.Future[Any]
    method: Method
    what: str  # "rollout-3.drain"
    timeout_s: float
    incoming: Incoming | None = None  # of a stream


class Link:
    """Calls to one life of one member. `on_end(link, reason, refused)` is called once, when it is over."""

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
        self.connected = False  # was it ever
        self.sound = True  # False once something came that is not a message
        self.ended: str | None = None
        self._sender = sender
        self._on_end = on_end
        self._on_stale = on_stale
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._room = asyncio.Semaphore(MAX_PENDING)
        socket = context.socket(zmq.DEALER)
        keys.unlock(socket)
        _never_reconnect(socket)
        monitor_address = f"inproc://monitor-{target.incarnation}-{id(self)}"
        socket.monitor(monitor_address, _events(*_ENDINGS, zmq.EVENT_HANDSHAKE_SUCCEEDED))
        monitor = context.socket(zmq.PAIR)
        monitor.connect(monitor_address)
        socket.connect(target.endpoint)
        self._raw = socket
        self._monitor = PolledSocket(monitor, self._on_event, head=2, max_frames=2)
        self._socket = PolledSocket(socket, self._on_message, head=2, max_frames=wire.MAX_FRAMES)

    async def call(self, method: Method, arguments: msgspec.Struct, timeout_s: float, deadline: float) -> Any:
        """One call, which ends by `deadline` (loop time; `timeout_s` is what messages say it was).

        Raises an ActorError; cancelling the task cancels the call at the member.
        """
        async with self._place(method, timeout_s, deadline) as pending:
            with self._under_way(pending, arguments, deadline) as call:
                try:
                    return await pending.future
                except asyncio.CancelledError:
                    self._cancel(call)
                    raise

    async def stream(
        self, method: Method, arguments: msgspec.Struct, timeout_s: float, deadline: float
    ) -> AsyncGenerator[Any]:
        """A call whose result comes item by item. Raises as `call`; ending it early cancels it at the member."""
        async with self._place(method, timeout_s, deadline) as pending:
            incoming = pending.incoming = Incoming(pending.future)
            with self._under_way(pending, arguments, deadline) as call:
                try:
                    async with contextlib.aclosing(incoming.take(lambda n: self._more(call, n))) as items:
                        async for item in items:
                            yield item
                finally:
                    if not pending.future.done():
                        self._cancel(call)
                    pending.future.cancel() or pending.future.exception()  # looked at, or asyncio complains

    @contextlib.asynccontextmanager
    async def _place(self, method: Method, timeout_s: float, deadline: float) -> AsyncIterator[_Pending]:
        """One of the link's MAX_PENDING places, waited for until the deadline."""
        what = f"{self.target.name}.{method.name}"
        if self._room.locked():
            try:
                async with asyncio.timeout_at(deadline):
                    await self._room.acquire()
            except TimeoutError:
                raise CallTimeout(f"{what} (waiting behind {MAX_PENDING} others)", timeout_s) from None
        else:
            await self._room.acquire()
        try:
            yield _Pending(self._loop.create_future(), method, what, timeout_s)
        finally:
            self._room.release()

    @contextlib.contextmanager
    def _under_way(self, pending: _Pending, arguments: msgspec.Struct, deadline: float) -> Iterator[int]:
        """Sends the call; its number. In the block answers are taken in and the deadline is kept."""
        if self.ended is not None:
            raise MemberLost(self.target.name, self.ended)
        call = next(_calls)
        left_s = max(deadline - self._loop.time(), 0.0)
        held = Held() if self.target.node == self._sender.node else None
        try:
            frames = wire.write(self._envelope("call", call, pending.method.name, left_s), arguments, held)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{pending.what}: {error}") from error
        self._pending[call] = pending
        timer = self._loop.call_at(deadline, self._expire, call)
        try:
            self._send(frames)
            yield call
        finally:
            timer.cancel()
            self._pending.pop(call, None)
            if held is not None:
                held.release()

    def end(self, reason: str, refused: bool = False) -> None:
        """Closes the connection; pending calls fail with MemberLost. Harmless on a link that has ended."""
        if self.ended is not None:
            return
        self.ended = reason
        self._raw.disable_monitor()
        self._monitor.close()
        self._socket.close()
        for pending in self._pending.values():
            _fail(pending, MemberLost(self.target.name, f"{reason} during {pending.what}"))
        self._on_end(self, reason, refused)

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

    def _send(self, frames: list[Buffer]) -> None:
        try:
            self._socket.send(frames)
        except zmq.Again:  # the connection is gone; its event is on the way
            self.end(_ENDINGS[zmq.EVENT_DISCONNECTED])

    def _expire(self, call: int) -> None:
        pending = self._pending.get(call)
        if pending is not None and not pending.future.done():
            self._cancel(call)
            _fail(pending, CallTimeout(pending.what, pending.timeout_s))

    def _cancel(self, call: int) -> None:
        if self.ended is None:
            self._send(wire.write_bare(self._envelope("cancel", call)))

    def _more(self, call: int, taken: int) -> None:
        if self.ended is None:
            self._send(wire.write(self._envelope("more", call), taken))

    def _on_event(self, frames: list[Any]) -> None:
        event, _value = struct.unpack("=HI", frames[0])
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connected = True
        elif event in _ENDINGS:
            self._socket.drain()  # replies that came before the end
            if event in _OTHER_KEYS:
                self._on_stale()  # the keys may be those of a later life of the run
            self.end(_ENDINGS[event], refused=event == zmq.EVENT_CLOSED and not self.connected)

    def _on_message(self, frames: list[Any]) -> None:
        try:
            envelope = wire.read_envelope(frames)
        except wire.Malformed as error:
            self.sound = False
            self.end(f"it answered with something else: {error}")
            return
        try:
            self._take_in(envelope, frames)
        finally:
            if envelope.shared and self.ended is None:
                self._send(wire.write_bare(self._envelope("taken", envelope.call)))

    def _take_in(self, envelope: wire.Envelope, frames: list[Any]) -> None:
        pending = self._pending.get(envelope.call)
        if pending is None or pending.future.done():
            return  # its caller has given up
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
            _fail(pending, CallRefused(f"{pending.what}: its result is not {pending.method.result}: {error}"))

    def _item(self, pending: _Pending, call: int, item: Any) -> None:
        if pending.incoming is None or not pending.incoming.came(item):
            self._cancel(call)
            _fail(pending, CallRefused(f"{pending.what}: it sent an item that was not asked for"))

    def _error(self, pending: _Pending, fault: wire.Fault, envelope: wire.Envelope) -> ActorError:
        if fault.kind == "raised":
            return RemoteError(pending.what, fault.type, fault.message, fault.traceback)
        if fault.kind == "not_here":
            return MemberLost(self.target.name, fault.message)
        if fault.kind == "stale":
            if envelope.generation > self._sender.generation:
                self._on_stale()
            return StaleGeneration(f"{pending.what}: {fault.message}")
        return CallRefused(f"{pending.what}: {fault.message}")


def _fail(pending: _Pending, error: ActorError) -> None:
    if not pending.future.done():
        pending.future.set_exception(error)


def _never_reconnect(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)  # IPv4 addresses work as before
    bound_socket(socket)


def bound_socket(socket: zmq.Socket[bytes]) -> None:
    """What both ends set: a dead host is noticed within 15 s, frames, queues and handshakes have an end.

    The bound on calls in flight (`MAX_PENDING` per link) keeps the queues of a sound run far below `MAX_QUEUED`.
    A peer that sends more than we read is made to wait; one that does not read what we send is cut off
    (a member by its caller) or not answered (a caller by the member).
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.SNDHWM, MAX_QUEUED)
    socket.setsockopt(zmq.RCVHWM, MAX_QUEUED)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)


def _events(*events: int) -> int:
    mask = 0
    for event in events:
        mask |= event
    return mask
