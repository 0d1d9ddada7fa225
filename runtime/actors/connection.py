"""What both ends of a connection set on their sockets, and what ZeroMQ tells of its end."""

from __future__ import annotations

from typing import Any

import zmq

from verst.runtime.actors import wire
from verst.runtime.actors.streams import WINDOW

MAX_PENDING = 1024  # calls of one link in flight; further ones wait for their turn
# Messages of one connection in each direction: twice what streams may fill.
MAX_QUEUED = 2 * MAX_PENDING * WINDOW
HANDSHAKE_MS = 10_000  # for TCP, and as much for CURVE: who has not shown a key by then is cut off

ENDINGS = {
    zmq.EVENT_CLOSED: "its port refuses connections",
    zmq.EVENT_DISCONNECTED: "the connection ended",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "it does not accept the key",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "its key is not this generation's",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake failed: its key is not this generation's, or it died",
}
OTHER_KEYS = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
}


def connected_socket(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """A caller's socket, which never connects again by itself."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.RECONNECT_IVL, -1)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, HANDSHAKE_MS)
    socket.setsockopt(zmq.IPV6, 1)  # IPv4 addresses work as before
    bound_socket(socket)
    return socket


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


def monitored(context: zmq.Context[Any], socket: zmq.Socket[bytes], *events: int) -> zmq.Socket[bytes]:
    """A socket that tells of these events of `socket`."""
    address = f"inproc://monitor-{id(socket)}"
    mask = 0
    for event in events:
        mask |= event
    socket.monitor(address, mask)
    monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)  # ZeroMQ's I/O thread would wait for room, and all connections with it
    monitor.connect(address)
    return monitor
