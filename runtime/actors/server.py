"""The called member's end: admits messages, runs each call once as a task, and answers.

Nothing that arrives stops the loop. A message that is not of this protocol is dropped and counted by reason.
A call that cannot be executed is answered with a Fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Literal

import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.actor import Actor, Method, methods
from verst.runtime.actors.codec import Buffer
from verst.runtime.actors.connection import bound_socket, monitored
from verst.runtime.actors.deadlines import Deadlines
from verst.runtime.actors.executed import ExecutedCalls
from verst.runtime.actors.fault import fault_of
from verst.runtime.actors.link import Sender
from verst.runtime.actors.outbox import Outbox
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.security import ZAP_ENDPOINT, Keys, answer_zap
from verst.runtime.actors.shared_memory import Held
from verst.runtime.actors.streams import Outgoing

log = logging.getLogger(__name__)

_HELD_S = 60.0
_BROKEN_HANDSHAKES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Server:
    """Serves `actor` (None: no methods) on a free port of `host`. `counts` says what was done and refused."""

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
        self._executed = ExecutedCalls()
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._deadlines: Deadlines[tuple[str, int]] = Deadlines(self._cancel)
        self._streams: dict[tuple[str, int], Outgoing] = {}
        # Memory that a call's caller has not mapped yet, in the order of the messages, each with its time
        # limit.
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
        # Else answers that cannot be sent would be dropped silently.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.IPV6, ":" in host)
        self.port = socket.bind_to_random_port(f"tcp://[{host}]" if ":" in host else f"tcp://{host}")
        self._zap = PolledSocket(zap, self._on_zap, head=16, max_frames=16)
        self._monitor = PolledSocket(
            monitored(context, socket, *_BROKEN_HANDSHAKES), self._on_broken_handshake, head=2, max_frames=2
        )
        self._raw = socket
        self._socket = PolledSocket(socket, self._on_message, head=3, max_frames=wire.MAX_FRAMES + 1)
        self._outbox = Outbox(self._socket, self._unsent)

    async def finish(self, grace_s: float) -> None:
        """Refuses further calls, gives running ones `grace_s` seconds to finish, and cancels the rest."""
        self._leaving = True
        tasks = {task for task in self._running.values() if task is not asyncio.current_task()}
        if tasks and grace_s > 0:
            await asyncio.wait(tasks, timeout=grace_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Closes the port. The last replies have one second to leave."""
        self._outbox.flush()
        self._deadlines.close()
        self._raw.disable_monitor()
        self._monitor.close()
        self._socket.close(linger_ms=1000)
        self._zap.close()

    def _on_zap(self, frames: list[bytes]) -> None:
        self._zap.send(answer_zap(frames, self._keys, self._count))

    def _on_broken_handshake(self, _: list[bytes]) -> None:
        """Counts a peer that has no CURVE or a wrong key, does not speak ZeroMQ, or was silent for too long."""
        self._count("refused_handshake")

    def _count(self, what: str) -> None:
        self.counts[what] += 1

    def _unsent(self, messages: int) -> None:
        self.counts["unanswered"] += messages  # the caller is gone, or does not read

    def _on_message(self, frames: list[Any]) -> None:
        route, *rest = frames
        try:
            messages = wire.read(rest)
        except wire.Malformed as error:
            self._count(f"malformed_{error.reason}")
            return
        for envelope, message in messages:
            self._take_in(route, envelope, message)

    def _take_in(self, route: bytes, envelope: wire.Envelope, message: Sequence[Buffer]) -> None:
        if envelope.kind not in ("call", "cancel", "more", "taken"):
            self._count("unexpected_kind")
        elif envelope.receiver != self._me.incarnation:
            self._refuse(route, envelope, "not_here", "another process listens on its port now")
        elif envelope.generation != self._me.generation:
            self._refuse_stale(route, envelope)
        elif envelope.kind == "cancel":
            self._cancel((envelope.sender, envelope.call))
        elif envelope.kind == "taken":
            self._release(envelope.sender, envelope.call, answered=True)
        elif envelope.kind == "more":
            self._give_room(envelope, message)
        elif self._leaving:
            self._refuse(route, envelope, "not_here", "it is leaving the run")
        else:
            self._accept(route, envelope, message)

    def _accept(self, route: bytes, envelope: wire.Envelope, message: Sequence[Buffer]) -> None:
        if not self._executed.first_time(envelope.sender, envelope.call):
            self._count("duplicate")
            return
        method = self._methods.get(envelope.method)
        if method is None:
            known = ", ".join(self._methods) or "none"
            self._refuse(route, envelope, "refused", f"no method {envelope.method!r}; it has: {known}")
            return
        if self._most_running is not None and len(self._running) >= self._most_running:
            self._refuse(route, envelope, "refused", f"{len(self._running)} calls already run or wait here")
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
            self._deadlines.set(key, self._loop.time() + envelope.timeout_s)
            task.add_done_callback(lambda _: self._is_over(key))

    def _is_over(self, key: tuple[str, int]) -> None:
        del self._running[key]
        self._deadlines.drop(key)

    async def _execute(self, route: bytes, envelope: wire.Envelope, method: Method, arguments: Any) -> None:
        try:
            async with self._slots:
                called = method.call(self._actor, arguments)
                result = await (self._stream(route, envelope, called) if method.streams else called)
        except asyncio.CancelledError:
            # By the caller, by its deadline, or because we leave, which the caller notices.
            self._count("cancelled")
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

    def _give_room(self, envelope: wire.Envelope, message: Sequence[Buffer]) -> None:
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
        self._answer(route, envelope, "error", fault_of(error))

    def _answer(
        self, route: bytes, envelope: wire.Envelope, kind: Literal["reply", "error", "item"], body: Any
    ) -> None:
        me = self._me
        reply = wire.Envelope(wire.PROTOCOL, kind, envelope.call, me.generation, me.incarnation, me.name, "")
        try:
            held = self._outbox.send(reply, body, route, shares=envelope.node == me.node)
        except (TypeError, ValueError, RecursionError) as error:  # the method returned what cannot be sent
            if kind != "reply":
                raise  # for an item, this comes back here as the stream's error
            self._answer_error(route, envelope, error)
            return
        if held is not None:
            self._hold(envelope, held)

    def _hold(self, envelope: wire.Envelope, held: Held) -> None:
        """Keeps memory until the caller has mapped it, or for _HELD_S, since the caller may be dead."""
        too_late = self._loop.call_later(_HELD_S, self._release, envelope.sender, envelope.call)
        self._held.setdefault((envelope.sender, envelope.call), deque()).append((held, too_late))

    def _release(self, sender: str, call: int, answered: bool = False) -> None:
        """Releases the call's oldest memory: messages are mapped, and run out of time, in their order."""
        waiting = self._held.get((sender, call))
        if waiting is None:
            return
        held, too_late = waiting.popleft()
        held.release(answered)
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
            f"{envelope.sender_name} is of life {theirs}, {self._me.name} of life {mine}",
        )
        if theirs > mine:
            self._on_stale()

    def _cancel(self, key: tuple[str, int]) -> None:
        task = self._running.get(key)
        if task is not None:
            task.cancel()
