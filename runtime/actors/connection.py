"""The socket options of both ends of a connection, and the events by which ZeroMQ reports its end."""

from __future__ import annotations

from typing import Any

import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.streams import WINDOW

MAX_PENDING = 1024  # calls of one link in flight; further ones wait for their turn
# Messages of one connection in each direction: twice the most that streams can have under way.
MAX_QUEUED = 2 * MAX_PENDING * WINDOW
HANDSHAKE_MS = 10_000  # for TCP, and again for CURVE: a peer that has shown no key by then is cut off

ENDINGS = {
    zmq.EVENT_CLOSED: "its port refuses connections",
    zmq.EVENT_DISCONNECTED: "the connection ended",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not accept the key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "its key is not this life's",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed: its key is not this life's, or it died",
}
OTHER_KEYS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}


def connected_socket(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """Makes a caller's socket. It never reconnects by itself."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)  # IPv4 addresses work as before
    bound_socket(socket)
    return socket


def bound_socket(socket: zmq.Socket[bytes]) -> None:
    """Sets the options of both ends: limits on frames, queues and handshakes, and heartbeats.

    A dead host is noticed within 15 s.
    The bound on calls in flight (`MAX_PENDING` per link) keeps the queues of a healthy run far below
    `MAX_QUEUED`. A peer that sends faster than we read has to wait. A peer that does not read our messages is
    cut off if it is the called member, and gets no answer if it is the caller.
    """
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.SNDHWM, MAX_QUEUED)
    socket.setsockopt(zmq.RCVHWM, MAX_QUEUED)
    socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5_000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)


def monitored(context: zmq.Context[Any], socket: zmq.Socket[bytes], *events: int) -> zmq.Socket[bytes]:
    """Makes a socket that reports these events of `socket`."""
    address = f"inproc://monitor-{id(socket)}"
    mask = 0
    for event in events:
        mask |= event
    socket.monitor(address, mask)
    monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)  # a full queue would block ZeroMQ's I/O thread, and so every connection
    monitor.connect(address)
    return monitor
