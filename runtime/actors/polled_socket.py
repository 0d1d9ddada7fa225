"""A ZeroMQ socket on an asyncio loop: each message that arrives goes to a callback.

pyzmq's own asyncio sockets make a future per message; at the rate of small calls that is most of the
cost. ZeroMQ's file descriptor is edge-triggered and is consumed by sends too, hence the checks of EVENTS.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from verst.runtime.codec import Buffer

_MESSAGES_PER_PASS = 64  # then the loop's other tasks get their turn


class SocketContext(zmq.Context[zmq.Socket[bytes]]):
    """A ZeroMQ context that never blocks the garbage collector.

    pyzmq's finalizer waits for the context's sockets without a deadline, and forever if they are garbage of
    the same cycle. A process that fails without leaving the run must exit, not hang there.
    """

    def __del__(self) -> None:
        """Leaves the end to the end of the process; `term` is the orderly way."""


class PolledSocket:
    """Owns `socket` until `close`. `on_message` gets the frames: `head` as bytes, then views."""

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
        self._fd = socket.FD
        self._loop.add_reader(self._fd, self._read)
        self._schedule()

    def send(self, frames: Sequence[Buffer]) -> None:
        """Queues a message; never blocks (there is no high-water mark: callers bound their calls).

        Raises zmq.Again when a DEALER's connection has ended.
        """
        self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        self._schedule()

    def drain(self) -> None:
        """Takes every message that has arrived, now. For the moment before `close`."""
        while not self._closed and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._on_message(self._receive())

    def close(self, linger_ms: int = 0) -> None:
        """Stops reading and closes the socket; what was sent may leave for `linger_ms` more."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._fd)
            self._socket.close(linger_ms)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._read_scheduled)

    def _read_scheduled(self) -> None:
        self._scheduled = False
        self._read()

    def _read(self) -> None:
        for _ in range(_MESSAGES_PER_PASS):
            if self._closed or not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                return
            frames = self._receive()
            try:
                self._on_message(frames)
            except BaseException:
                self._schedule()  # one message's fault, which goes to the loop's handler, delays no other
                raise
        self._schedule()

    def _receive(self) -> list[Any]:
        """One message. Frames beyond the bound are read off the socket and dropped, all but one."""
        socket = self._socket
        frames: list[Any] = [socket.recv(zmq.NOBLOCK)]
        while socket.get(zmq.RCVMORE):
            if len(frames) < self._head:
                frames.append(socket.recv(zmq.NOBLOCK))
            else:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
                if len(frames) <= self._max_frames:
                    frames.append(frame.buffer.toreadonly())
        return frames
