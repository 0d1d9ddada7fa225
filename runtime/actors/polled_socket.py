"""A ZeroMQ socket on an asyncio loop that passes each received message to a callback.

pyzmq's own asyncio sockets make a future per message, which would be most of the cost of small calls.
ZeroMQ's file descriptor is edge-triggered, and sends consume its events too; hence the checks of EVENTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from verst.runtime.actors.codec import Buffer

_MESSAGES_PER_PASS = 32  # after these, the loop's other tasks get their turn
_POLLIN = int(zmq.POLLIN)  # an int, because arithmetic with zmq's enums costs as much as a system call
_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


def _nothing_waits() -> bool:
    return False


class PolledSocket:
    """Owns `socket` until `close`, and calls `on_message` with the frames of each message.

    The first `head` frames are bytes, the others views. `when_idle` is called when no more messages have
    arrived. It sends the messages that wait to leave together, and returns whether there were any.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_message: Callable[[list[Any]], None],
        *,
        head: int,
        max_frames: int,
    ) -> None:
        self._socket = socket
        self._on_message = on_message
        self._head = head
        self._max_frames = max_frames
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._closed = False
        self.when_idle: Callable[[], bool] = _nothing_waits
        self._fd = socket.FD
        self._loop.add_reader(self._fd, self._turn)
        self.soon()

    def send(self, frames: Sequence[Buffer]) -> None:
        """Queues a message. Never blocks: callers bound the number of their calls.

        Raises zmq.Again when a DEALER's connection has ended.
        """
        for frame in frames[:-1]:
            self._socket.send(frame, _MORE, False)
        self._socket.send(frames[-1], _LAST, False)
        self.soon()

    def soon(self) -> None:
        """Makes the loop's next turn call `when_idle` and check the socket."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn_scheduled)

    def drain(self) -> None:
        """Handles every message that has arrived, at once. For use just before `close`."""
        while not self._closed and self._something_came():
            self._on_message(self._receive())

    def close(self, linger_ms: int = 0) -> None:
        """Stops reading and closes the socket. Messages that were sent have `linger_ms` more to leave."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close(linger_ms)

    def _turn_scheduled(self) -> None:
        self._turn(something_waits=not self._closed)

    def _turn(self, something_waits: bool = False) -> None:
        """Handles arrived messages and sends the resulting ones, until there are no more of either."""
        self._scheduled = True  # messages that are sent meanwhile leave in this turn
        try:
            if something_waits:
                self.when_idle()
            for _ in range(_MESSAGES_PER_PASS):
                if self._closed:
                    return
                if self._something_came():
                    self._on_message(self._receive())
                elif not self.when_idle():
                    self._scheduled = False
                    return
        finally:  # an error in one message goes to the loop's handler and must not delay the others
            if self._scheduled and not self._closed:
                self._loop.call_soon(self._turn_scheduled)

    def _something_came(self) -> bool:
        return bool(self._socket.get(zmq.EVENTS) & _POLLIN)  # type: ignore[operator]  # an int, for this option

    def _receive(self) -> list[Any]:
        """Receives one message. All but one of the frames beyond `max_frames` are read and dropped."""
        socket = self._socket
        frames: list[Any] = [socket.recv(_LAST)]
        while socket.get(zmq.RCVMORE):
            if len(frames) < self._head:
                frames.append(socket.recv(_LAST))
            else:
                frame = socket.recv(_LAST, copy=False)
                if len(frames) <= self._max_frames:
                    frames.append(frame.buffer.toreadonly())
        return frames
