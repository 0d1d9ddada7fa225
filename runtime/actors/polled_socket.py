"""A ZeroMQ socket on an asyncio loop: each message that arrives goes to a callback.

pyzmq's own asyncio sockets make a future per message; at the rate of small calls that is most of the
cost. ZeroMQ's file descriptor is edge-triggered and is consumed by sends too, hence the checks of EVENTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from verst.runtime.actors.codec import Buffer

_MESSAGES_PER_PASS = 32  # then the loop's other tasks get their turn
_POLLIN = int(zmq.POLLIN)  # zmq's own are enums, whose arithmetic costs as much as a system call
_LAST = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


def _nothing_waits() -> bool:
    return False


class PolledSocket:
    """Owns `socket` until `close`. `on_message` gets the frames: `head` as bytes, then views.

    `when_idle`, when nothing more has arrived, sends what should leave together and says whether that was anything.
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
        """Queues a message; never blocks (there is no high-water mark: callers bound their calls).

        Raises zmq.Again when a DEALER's connection has ended.
        """
        for frame in frames[:-1]:
            self._socket.send(frame, _MORE, False)
        self._socket.send(frames[-1], _LAST, False)
        self.soon()

    def soon(self) -> None:
        """Sees to it that in the loop's next turn `when_idle` is called and the socket looked at."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn_scheduled)

    def drain(self) -> None:
        """Takes every message that has arrived, now. For the moment before `close`."""
        while not self._closed and self._something_came():
            self._on_message(self._receive())

    def close(self, linger_ms: int = 0) -> None:
        """Stops reading and closes the socket; what was sent may leave for `linger_ms` more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close(linger_ms)

    def _turn_scheduled(self) -> None:
        self._turn(something_waits=not self._closed)

    def _turn(self, something_waits: bool = False) -> None:
        """Takes what has arrived and lets leave what that led to, until there is neither."""
        self._scheduled = True  # what is sent meanwhile is seen to here
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
        finally:  # one message's fault, which goes to the loop's handler, delays no other
            if self._scheduled and not self._closed:
                self._loop.call_soon(self._turn_scheduled)

    def _something_came(self) -> bool:
        return bool(self._socket.get(zmq.EVENTS) & _POLLIN)  # type: ignore[operator]  # an int, for this option

    def _receive(self) -> list[Any]:
        """One message. Frames beyond the bound are read off the socket and dropped, all but one."""
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
