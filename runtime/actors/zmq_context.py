"""A member's ZeroMQ context, with room for thousands of connections and a deadline for its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import threading

import zmq

log = logging.getLogger(__name__)

_MAX_SOCKETS = 65_536  # ZeroMQ's default of 1023 is enough for 500 members
_MAX_OPEN_FILES = 2 * _MAX_SOCKETS
_TERM_TIMEOUT_S = 5.0


class SocketContext(zmq.Context[zmq.Socket[bytes]]):
    """A ZeroMQ context that never blocks the garbage collector.

    pyzmq's finalizer waits for the context's sockets without a deadline, and for ever if they are garbage of
    the same cycle. A process that fails without leaving the run must exit instead of hanging there.
    """

    def __del__(self) -> None:
        """Does nothing: the context ends with the process. `term` ends it in an orderly way."""


def new_context() -> SocketContext:
    """Makes a context with room for thousands of connections."""
    context = SocketContext()
    context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
    _allow_open_files()
    return context


async def end_context(context: SocketContext, name: str) -> None:
    """Ends the context once the last replies have left. ZeroMQ's own wait has no deadline, so this has one."""
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
        log.warning("%s: the ZeroMQ context did not end within %g s", name, _TERM_TIMEOUT_S)


def _allow_open_files() -> None:
    """Raises the soft limit on open files. It is often 1024, too few for the connections of 1,000 members."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
