"""Sends messages through a socket. Small ones to the same peer leave together at the end of the loop's turn.

A frame costs ZeroMQ, CURVE and the kernel the same whether it holds one message or sixty, and it is most of
the cost of a small call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.codec import Buffer
from verst.runtime.actors.polled_socket import PolledSocket
from verst.runtime.actors.shared_memory import Held
from verst.runtime.actors.wire import Envelope, Packed

_NOBODY_READS = (zmq.EAGAIN, zmq.EHOSTUNREACH)


class Outbox:
    """Sends messages through `socket`, those to one peer in the order in which they were given.

    `route` is a ROUTER socket's name for the peer, and empty for a DEALER socket. `unsent(messages)` is
    called with the number of messages that could not be sent, because the peer is gone or does not read.
    """

    def __init__(self, socket: PolledSocket, unsent: Callable[[int], None]) -> None:
        self._socket = socket
        self._unsent = unsent
        self._waiting: dict[bytes, list[Packed]] = {}
        socket.when_idle = self.flush

    def send(self, envelope: Envelope, body: Any, route: bytes = b"", *, shares: bool = False) -> Held | None:
        """Sends a message; with `shares` its large arrays go through shared memory.

        Returns that memory, if there is any: the caller must keep it until the receiver has mapped it. Raises
        TypeError or ValueError if `body` cannot be sent.
        """
        frames = wire.encode(body)
        if len(frames) == 1 and len(frames[0]) <= wire.PACKED_BYTES:
            self._pack(Packed(envelope, frames[0]), route)  # type: ignore[arg-type]
            return None
        held = Held() if shares else None
        message = wire.write(envelope, frames, held)
        self.flush()
        return held if self._send(message, route, 1) and held else None

    def send_bare(self, envelope: Envelope) -> None:
        """Sends a message without a body: a "cancel" or "taken"."""
        self._pack(Packed(envelope), b"")

    def flush(self) -> bool:
        """Sends the messages that wait. Returns whether there were any."""
        waiting, self._waiting = self._waiting, {}
        for route, messages in waiting.items():
            self._send([wire.pack(messages)], route, len(messages))
        return bool(waiting)

    def _pack(self, packed: Packed, route: bytes) -> None:
        messages = self._waiting.get(route)
        if messages is None:
            self._waiting[route] = [packed]
            self._socket.soon()
            return
        messages.append(packed)
        if len(messages) == wire.MAX_PACKED:
            del self._waiting[route]
            self._send([wire.pack(messages)], route, len(messages))

    def _send(self, frames: Sequence[Buffer], route: bytes, messages: int) -> bool:
        try:
            self._socket.send([route, *frames] if route else frames)
        except zmq.ZMQError as error:
            if error.errno not in _NOBODY_READS:
                raise
            self._unsent(messages)
            return False
        return True
