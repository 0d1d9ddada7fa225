"""Process groups between trainer ranks and one engine, with operations that never wait forever.

An engine joins through SGLang's /init_weights_update_group. If it refuses a call or dies, its side of a collective
never happens. So every collective of the trainer runs in a thread of its own, while the caller watches the engine's
answer and a deadline. If an engine fails, it is abandoned together with its group, and the others go on.

The group is built from torch's backends directly, under the store keys that `torch.distributed` uses. It is not a
subgroup of the trainer's world and changes nothing in it. NCCL_CUMEM_ENABLE and NCCL_NVLS_ENABLE must be 0 here
because SGLang sets them to 0 in its processes; with different settings both sides fail.
"""

from __future__ import annotations

import atexit
import ctypes
import datetime
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Literal

import torch.distributed as dist

Backend = dist.ProcessGroupGloo | dist.ProcessGroupNCCL

# Returns why the engine failed, or None while it has not answered or all is well.
Failed = Callable[[], str | None]

NCCL_ENVIRONMENT = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}

POLL_S = 0.002
_EXIT_S = 1.0
_ASK_S = 0.1
# NCCL's watchdog ends the whole process when an operation takes longer than this, so our deadlines must be shorter.
_BACKEND_TIMEOUT = datetime.timedelta(days=1)


class EngineError(RuntimeError):
    """An engine did not take part, and its group is abandoned. The message says which engine and why."""


class Source:
    """The meeting point of the source rank and the engines: a TCPStore on an ephemeral port of one address."""

    def __init__(self, host: str) -> None:
        """Raises OSError if `host` is not an address of this machine."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        self.host = host
        self.port: int = listener.getsockname()[1]
        self._server = dist.TCPStore(
            host, self.port, None, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        # If the store were destroyed at exit, threads that wait for an engine would wake up without an interpreter.
        keep_past_exit(self._server)

    def give_up(self, name: str, reason: str) -> None:
        """Tells the other trainer ranks that the engine of group `name` failed; they read it with `GivenUp`."""
        self._server.set(_given_up(name), reason)


class GivenUp:
    """Lets another trainer rank ask the source's store whether the source has given a group up."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._store = dist.TCPStore(
            host, port, None, is_master=False, timeout=datetime.timedelta(seconds=timeout_s)
        )
        self._asked = 0.0

    def reason(self, name: str) -> str | None:
        """Why the source has given group `name` up, or None. Asks the store at most every tenth of a second."""
        now = time.monotonic()
        if now < self._asked + _ASK_S:
            return None
        self._asked = now
        key = _given_up(name)
        return self._store.get(key).decode() if self._store.check([key]) else None


def _given_up(name: str) -> str:
    return f"given up/{name}"


def join(host: str, port: int, name: str, rank: int, size: int, backend: Literal["gloo", "nccl"]) -> Backend:
    """Joins group `name` at a Source as rank `rank` of `size`. Blocks until all have joined: call it in an `Operation`.

    `name` must be new for each attempt.
    """
    # Each group has its own client, because a client that waits for an engine blocks all other requests. The wait has
    # practically no timeout: otherwise the thread of an abandoned attempt could wake up while the interpreter ends.
    client = dist.TCPStore(host, port, None, is_master=False, timeout=_BACKEND_TIMEOUT)
    store = dist.PrefixStore(f"{name}/", dist.PrefixStore(name, client))
    return _backend(store, rank, size, backend)


class Operation[T]:
    """A blocking call in a thread of its own. If it does not return in time, the thread is left behind."""

    def __init__(self, what: str, call: Callable[[], T]) -> None:
        self._what = what
        self._call = call
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._started = time.monotonic()
        start_thread(self._run, what)

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:  # torch raises many types; `wait` reports it in the caller's thread
            self._error = error
        self._done.set()

    def wait(self, deadline: float, failed: Failed) -> str | None:
        """Waits for the call's end. Returns why it failed, or None if it did not.

        The reason is the engine's own if it gave one, else the call's error or the missed deadline.
        """
        while not self._done.wait(POLL_S):
            if (reason := failed()) is not None:
                return f"failed while {self._what}: {reason}"
            if time.monotonic() >= deadline:
                return f"{self._what} took longer than {time.monotonic() - self._started:.1f} s"
        if self._error is not None:
            return f"failed while {self._what}: {failed() or self._error}"
        return None

    def result(self) -> T:
        """The call's result. Only valid after `wait` has returned None."""
        return self._result[0]

    def made(self) -> T | None:
        """The call's result, or None if it has not returned yet."""
        return self._result[0] if self._result else None


_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def start_thread(call: Callable[[], object], name: str) -> None:
    """Starts a thread that may be left behind."""
    thread = threading.Thread(target=call, name=name, daemon=True)
    _threads.add(thread)
    thread.start()


@atexit.register
def _let_threads_return() -> None:
    """Gives the threads a moment to return before the interpreter ends.

    A thread that returns from torch's code while the interpreter ends makes the process die of SIGABRT. Threads that
    were told to end do so in this time. Threads that wait for an engine stay blocked, which does no harm.
    """
    deadline = time.monotonic() + _EXIT_S
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))


def keep_past_exit(thing: object) -> None:
    """Leaks `thing`, so that nothing destroys it before the process ends, not even the interpreter's shutdown."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _backend(store: dist.Store, rank: int, size: int, backend: str) -> Backend:
    """Makes the backend that `torch.distributed` would make, under the same store keys."""
    if backend == "gloo":
        gloo = dist.ProcessGroupGloo(dist.PrefixStore("cpu/", store), rank, size, timeout=_BACKEND_TIMEOUT)
        gloo._set_sequence_number_for_group()
        return gloo
    different = {k: os.environ.get(k) for k, v in NCCL_ENVIRONMENT.items() if os.environ.get(k) != v}
    if different:
        raise ValueError(
            f"the trainer's environment has {different}, but SGLang's engines have {NCCL_ENVIRONMENT}; set the same"
        )
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = _BACKEND_TIMEOUT
    nccl = dist.ProcessGroupNCCL(dist.PrefixStore("cuda/", store), rank, size, options)
    nccl._set_sequence_number_for_group()
    return nccl
