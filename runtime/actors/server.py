"""The callee's end: admits messages, runs each call once as a task, answers.

Whatever arrives, the loop goes on: a message that is not ours is dropped and counted by reason, a call that
cannot be executed is answered with a Fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.actor import Actor, Method, methods
from verst.runtime.actors.link import Sender, bound_socket
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.security import ZAP_ENDPOINT, Keys, answer_zap
from verst.runtime.actors.shared_memory import Held
from verst.runtime.actors.streams import Outgoing

log = logging.getLogger(__name__)

# Per caller; more than can be in flight, so a number that lies farther back counts as a repetition.
_REMEMBERED_CALLS = 4096
_WINDOW = (1 << _REMEMBERED_CALLS) - 1
_REMEMBERED_CALLERS = 16_384
_HELD_S = 60.0
_MAX_TEXT = 65_536  # characters of a Fault's message and of its traceback
_BROKEN_HANDSHAKES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class _Executed:
    """The calls of one caller that were accepted. Its numbers rise and its connection keeps their order.

    A bit per number, so that a caller costs 0.6 kB however many calls it makes.
    """

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 1  # bit n: the number that is n below the highest

    def first_time(self, call: int) -> bool:
        if call > self._highest:
            risen = min(call - self._highest, _REMEMBERED_CALLS)
            self._seen = (self._seen << risen | 1) & _WINDOW
            self._highest = call
            return True
        behind = self._highest - call
        if call <= 0 or behind >= _REMEMBERED_CALLS or self._seen >> behind & 1:
            return False
        self._seen |= 1 << behind
        return True


class Server:
    """Serves `actor` (or nothing) on an ephemeral port of `host`. `counts`: what was done and refused."""

    def __init__(
        self,
        context: zmq.Context[Any],
        keys: Keys,
        me: Sender,
        actor: Actor | None,
        host: str,
        on_stale: Callable[[], None],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._me = me
        self._actor = actor
        self._methods = {} if actor is None else methods(type(actor))
        self._on_stale = on_stale
        self._leaving = False
        self._loop = asyncio.get_running_loop()
        self._executed: OrderedDict[str, _Executed] = OrderedDict()
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._streams: dict[tuple[str, int], Outgoing] = {}
        # What a call's caller has yet to map, in the order of the messages, and until when it has time.
        self._held: dict[tuple[str, int], deque[tuple[Held, asyncio.TimerHandle]]] = {}
        limit = None if actor is None else actor.concurrency
        self._slots = contextlib.nullcontext() if limit is None else asyncio.Semaphore(limit)
        self._most_running = None if actor is None or limit is None else limit + actor.backlog
        zap = context.socket(zmq.REP)
        zap.bind(ZAP_ENDPOINT)
        self._keys = keys
        socket = context.socket(zmq.ROUTER)
        keys.guard(socket)
        bound_socket(socket)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # or answers that cannot be sent would vanish silently
        socket.setsockopt(zmq.IPV6, ":" in host)
        self.port = socket.bind_to_random_port(f"tcp://[{host}]" if ":" in host else f"tcp://{host}")
        self._zap = PolledSocket(zap, self._on_zap, head=16, max_frames=16)
        self._monitor = PolledSocket(
            _monitor(context, socket), self._on_broken_handshake, head=2, max_frames=2
        )
        self._raw = socket
        self._socket = PolledSocket(socket, self._on_message, head=3, max_frames=wire.MAX_FRAMES + 1)

    async def finish(self, grace_s: float) -> None:
        """Refuses further calls, lets running ones finish for `grace_s` and cancels the rest."""
        self._leaving = True
        tasks = {task for task in self._running.values() if task is not asyncio.current_task()}
        if tasks and grace_s > 0:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Closes the port; the last replies have a second to leave."""
        self._raw.disable_monitor()
        self._monitor.close()
        self._socket.close(linger_ms=1000)
        self._zap.close()

    def _on_zap(self, frames: list[bytes]) -> None:
        self._zap.send(answer_zap(frames, self._keys, self._count))

    def _on_broken_handshake(self, _: list[bytes]) -> None:
        """No CURVE, another run's or generation's key, not ZeroMQ at all, or silence for too long."""
        self._count("refused_handshake")

    def _count(self, what: str) -> None:
        self.counts[what] += 1

    def _on_message(self, frames: list[Any]) -> None:
        route, *message = frames
        try:
            envelope = wire.read_envelope(message)
        except wire.Malformed as error:
            self._count(f"malformed_{error.reason}")
            return
        if envelope.kind not in ("call", "cancel", "more", "taken"):
            self._count("unexpected_kind")
        elif envelope.receiver != self._me.incarnation:
            self._refuse(route, envelope, "not_here", "another process listens on its port now")
        elif envelope.generation != self._me.generation:
            self._refuse_stale(route, envelope)
        elif envelope.kind == "cancel":
            self._cancel(envelope)
        elif envelope.kind == "taken":
            self._release(envelope.sender, envelope.call)
        elif envelope.kind == "more":
            self._give_room(envelope, message)
        elif self._leaving:
            self._refuse(route, envelope, "not_here", "it is leaving the run")
        else:
            self._accept(route, envelope, message)

    def _accept(self, route: bytes, envelope: wire.Envelope, message: list[Any]) -> None:
        if not self._first_time(envelope):
            self._count("duplicate")
            return
        method = self._methods.get(envelope.method)
        if method is None:
            known = ", ".join(self._methods) or "none"
            self._refuse(route, envelope, "refused", f"no method {envelope.method!r}; there are: {known}")
            return
        if self._most_running is not None and len(self._running) >= self._most_running:
            self._refuse(route, envelope, "refused", f"{len(self._running)} calls run or wait here already")
            return
        try:
            arguments = wire.read_body(method.arguments, message, envelope.shared)
        except wire.Malformed as error:
            self._refuse(route, envelope, "refused", f"arguments: {error}")
            return
        self._count("calls")
        key = (envelope.sender, envelope.call)
        task = asyncio.Task(
            self._execute(route, envelope, method, arguments),
            loop=self._loop,
            eager_start=True,
            name=method.name,
        )
        if not task.done():
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _execute(self, route: bytes, envelope: wire.Envelope, method: Method, arguments: Any) -> None:
        bound: Callable[..., Any] = getattr(self._actor, method.name)
        positional = {
            name: getattr(arguments, name)
            for name, parameter in method.signature.parameters.items()
            if parameter.kind is not parameter.KEYWORD_ONLY
        }
        keyword = {
            name: getattr(arguments, name) for name in method.signature.parameters if name not in positional
        }
        try:
            async with asyncio.timeout(envelope.timeout_s), self._slots:
                called = bound(*positional.values(), **keyword)
                result = await (self._stream(route, envelope, called) if method.streams else called)
        except asyncio.CancelledError:
            self._count("cancelled")
            return  # the caller asked for it, or we are leaving, which it sees
        except TimeoutError as error:
            # The caller's deadline has passed as well, unless the method itself raised the error.
            self._answer_error(route, envelope, error)
        except Exception as error:
            self._answer_error(route, envelope, error)
        else:
            self._answer(route, envelope, "reply", result)

    async def _stream(self, route: bytes, envelope: wire.Envelope, items: AsyncGenerator[Any]) -> None:
        key = (envelope.sender, envelope.call)
        outgoing = self._streams[key] = Outgoing()
        try:
            async with contextlib.aclosing(items):
                async for item in items:
                    await outgoing.wait_for_room()
                    self._answer(route, envelope, "item", item)
        finally:
            del self._streams[key]

    def _give_room(self, envelope: wire.Envelope, message: list[Any]) -> None:
        outgoing = self._streams.get((envelope.sender, envelope.call))
        if outgoing is None:
            return  # the stream has ended
        try:
            right = outgoing.taken(wire.read_body(int, message))
        except wire.Malformed as error:
            self._count(f"malformed_{error.reason}")
            return
        if not right:
            self._count("malformed_more")

    def _answer_error(self, route: bytes, envelope: wire.Envelope, error: Exception) -> None:
        self._count("raised")
        self._answer(route, envelope, "error", _fault(error))

    def _answer(
        self, route: bytes, envelope: wire.Envelope, kind: Literal["reply", "error", "item"], body: Any
    ) -> None:
        me = self._me
        reply = wire.Envelope(wire.PROTOCOL, kind, envelope.call, me.generation, me.incarnation, me.name, "")
        held = Held() if envelope.node == me.node else None
        try:
            frames = wire.write(reply, body, held)
        except (TypeError, ValueError, RecursionError) as error:  # what cannot cross is the method's fault
            if kind != "reply":
                raise  # an item's comes back here as the stream's error
            self._answer_error(route, envelope, error)
            return
        try:
            self._socket.send([route, *frames])
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._count("unanswered")  # the caller is gone, or reads nothing
            return
        if held:
            self._hold(envelope, held)

    def _hold(self, envelope: wire.Envelope, held: Held) -> None:
        """Until the caller has mapped it, or has had time enough: it may be dead."""
        too_late = self._loop.call_later(_HELD_S, self._release, envelope.sender, envelope.call)
        self._held.setdefault((envelope.sender, envelope.call), deque()).append((held, too_late))

    def _release(self, sender: str, call: int) -> None:
        """The oldest: messages are mapped in their order, and run out of time in it."""
        waiting = self._held.get((sender, call))
        if waiting is None:
            return
        held, too_late = waiting.popleft()
        held.release()
        too_late.cancel()
        if not waiting:
            del self._held[sender, call]

    def _refuse(
        self, route: bytes, envelope: wire.Envelope, kind: Literal["refused", "stale", "not_here"], why: str
    ) -> None:
        self._count(kind)
        if envelope.kind == "call":
            self._answer(route, envelope, "error", wire.Fault(kind, "", why))

    def _refuse_stale(self, route: bytes, envelope: wire.Envelope) -> None:
        mine, theirs = self._me.generation, envelope.generation
        self._refuse(
            route,
            envelope,
            "stale",
            f"{envelope.sender_name} is of generation {theirs}, {self._me.name} of {mine}",
        )
        if theirs > mine:
            self._on_stale()

    def _cancel(self, envelope: wire.Envelope) -> None:
        task = self._running.get((envelope.sender, envelope.call))
        if task is not None:
            task.cancel()

    def _first_time(self, envelope: wire.Envelope) -> bool:
        executed = self._executed.get(envelope.sender)
        if executed is None:
            executed = self._executed[envelope.sender] = _Executed()
            if len(self._executed) > _REMEMBERED_CALLERS:
                self._executed.popitem(last=False)
        self._executed.move_to_end(envelope.sender)
        return executed.first_time(envelope.call)


def _monitor(context: zmq.Context[Any], socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A socket that tells of each connection to `socket` whose handshake failed before a key was seen."""
    address = f"inproc://handshakes-{id(socket)}"
    socket.monitor(address, _BROKEN_HANDSHAKES)
    monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's I/O thread would wait for room, and all connections with it
    monitor.connect(address)
    return monitor


def _fault(error: Exception) -> wire.Fault:
    """What a method raised, as text that can cross whatever it is: bounded, and without lone surrogates."""
    try:
        message = str(error)
    except Exception as second:
        message = f"its message cannot be told: {type(second).__qualname__}"
    text = "".join(traceback.format_exception(error))
    return wire.Fault("raised", _sendable(type(error).__qualname__), _sendable(message), _sendable(text))


def _sendable(text: str) -> str:
    """A text too long keeps its two ends."""
    if len(text) > _MAX_TEXT:
        text = f"{text[: _MAX_TEXT // 2]} … {text[-_MAX_TEXT // 2 :]}"
    return text.encode(errors="backslashreplace").decode()
