"""A member's ZeroMQ context: room for thousands of connections, and an end that waits for nobody for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import threading

import zmq

log = logging.getLogger(__name__)

_MAX_SOCKETS = 65_536  # its default of 1023 would do for 500 members
_MAX_OPEN_FILES = 2 * _MAX_SOCKETS
_TERM_TIMEOUT_S = 5.0


class SocketContext(zmq.Context[zmq.Socket[bytes]]):
    """A ZeroMQ context that never blocks the garbage collector.

    pyzmq's finalizer waits for the context's sockets without a deadline, and forever if they are garbage of
    the same cycle. A process that fails without leaving the run must exit, not hang there.
    """

    def __del__(self) -> None:
        """Leaves the end to the end of the process; `term` is the orderly way."""


def new_context() -> SocketContext:
    """With room for thousands of connections."""
    context = SocketContext()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    _allow_open_files()
    return context


async def end_context(context: SocketContext, name: str) -> None:
    """Waits for the last replies, at most their linger. ZeroMQ's own wait has no deadline, so ours has."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def term() -> None:
        context.term()
        with contextlib.suppress(RuntimeError):  # too late: the loop is closed
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=term, name=f"{name}-term", daemon=True).start()
    try:
        async with asyncio.timeout(_TERM_TIMEOUT_S):
            await ended.wait()
    except TimeoutError:
        log.warning("%s: ZeroMQ did not end within %g s", name, _TERM_TIMEOUT_S)


def _allow_open_files() -> None:
    """Raises the soft limit on open files: often it is 1024, which the connections of 1,000 members exceed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
