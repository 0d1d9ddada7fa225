"""The source's side of broadcasting tensors to engines: one process group per engine, and no wait for ever.

An engine joins through SGLang's /init_weights_update_group (source rank 0, the engine's tensor-parallel
ranks 1..n) and receives through /update_weights_from_distributed, which broadcasts a bucket's tensors one
after another. When the engine refuses such a call, its side of the collective never happens. So every
collective here runs on a thread of its group while the caller watches the engine's answer and a deadline;
an engine that fails is abandoned, group and all, and the others go on.

The group is built from torch's backends directly, under the store keys that `torch.distributed` uses: it is
no subgroup of the trainer's world and leaves no trace in it. NCCL_CUMEM_ENABLE and NCCL_NVLS_ENABLE must be
0 here because SGLang sets them so in its processes; unlike settings make both sides fail.
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
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist

Backend = dist.ProcessGroupGloo | dist.ProcessGroupNCCL

# The engine's answer so far: None while there is none or all is well, else why it failed.
Failed = Callable[[], str | None]

NCCL_ENVIRONMENT = {"NCCL_CUMEM_ENABLE": "0", "NCCL_NVLS_ENABLE": "0"}

_POLL_S = 0.002
_EXIT_S = 1.0
# NCCL's watchdog ends the whole process when an operation outlives this, so our deadlines must come first.
_BACKEND_TIMEOUT = datetime.timedelta(days=1)


class EngineError(RuntimeError):
    """An engine did not take part; its group is abandoned. The message says which engine and why."""


class Source:
    """Where engines meet the source: a TCPStore on an ephemeral port of one address."""

    def __init__(self, host: str) -> None:
        """Raises OSError when `host` is no address of this machine."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        self.host = host
        self.port: int = listener.getsockname()[1]
        self._server = dist.TCPStore(
            host, self.port, None, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        # A thread that waits for an engine must not wake up from its end: the interpreter may be gone.
        _keep_past_exit(self._server)

    def connect(
        self,
        engine: str,
        name: str,
        engine_ranks: int,
        backend: Literal["gloo", "nccl"],
        timeout_s: float,
        failed: Failed,
    ) -> EngineGroup:
        """Meets the `engine_ranks` ranks of an engine that was told to join group `name` here.

        `engine` is what messages call it. `name` must be new for each attempt. Raises EngineError when
        `failed` reports a reason or the time is up.
        """
        # A client of its own: one that waits for an engine lets nobody else ask.
        client = dist.TCPStore(self.host, self.port, None, is_master=False)
        store = dist.PrefixStore(f"{name}/", dist.PrefixStore(name, client))
        made: list[Backend] = []

        def make() -> None:
            made.append(_backend(store, 1 + engine_ranks, backend, timeout_s))

        operation = _Operation(f"joining group {name}", make)
        reason = operation.wait(time.monotonic() + timeout_s, failed)
        if reason is not None:
            raise EngineError(f"{engine}: {reason}")
        return EngineGroup(engine, made[0])


class EngineGroup:
    """The process group of the source and one engine."""

    def __init__(self, engine: str, backend: Backend) -> None:
        self.engine = engine
        self._backend: Backend | None = backend
        self._given_up = threading.Event()

    def start(self, tensors: Sequence[torch.Tensor], deadline: float) -> _Operation:
        """Begins broadcasting whole tensors, in order. They must not change until it is done."""
        backend = self._backend
        if backend is None:
            raise EngineError(f"{self.engine}: its group was abandoned")
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        if isinstance(backend, dist.ProcessGroupGloo):
            # gloo has no way to abort: this ends its threads. (NCCL's watchdog would end the process.)
            options.timeout = datetime.timedelta(seconds=max(1.0, deadline - time.monotonic()))
        contiguous = [tensor.contiguous() for tensor in tensors]
        if contiguous and contiguous[0].is_cuda:
            torch.cuda.current_stream().synchronize()  # the thread has a stream of its own

        def broadcast_all() -> None:
            if contiguous and contiguous[0].is_cuda:
                torch.cuda.set_device(contiguous[0].device)
            # torch's type stubs do not know it
            works = [backend.broadcast([tensor], options) for tensor in contiguous]  # type: ignore[union-attr]
            for work in works:
                while not work.is_completed():
                    if self._given_up.wait(_POLL_S):
                        return
                work.wait()

        return _Operation(f"broadcasting {len(tensors)} tensors", broadcast_all)

    def abandon(self) -> None:
        """Breaks the connections at once; the engine's side fails by itself or at its own timeout."""
        self._given_up.set()
        if self._backend is not None:
            _keep_past_exit(self._backend)  # its destructor would wait for operations that never end
            # Aborting NCCL may wait for a communicator that is still being made.
            _start_thread(self._backend.abort, f"aborting the group of {self.engine}")
            self._backend = None

    def close(self) -> None:
        """Ends a group whose broadcasts are all done."""
        if self._backend is not None:
            self._backend.shutdown()
            self._backend = None


def broadcast(
    groups: Mapping[int, EngineGroup],
    tensors: Sequence[torch.Tensor],
    deadline: float,
    failed: Mapping[int, Failed],
) -> dict[int, str]:
    """Broadcasts one bucket to several engines at once; returns why those failed that did, by engine.

    `deadline` is on time.monotonic's clock. The groups of engines that failed are abandoned. Returning
    without a failure means that every tensor was sent, not that the engine has loaded it: that is its answer.
    """
    operations: dict[int, _Operation] = {}
    reasons: dict[int, str] = {}
    for engine, group in groups.items():
        try:
            operations[engine] = group.start(tensors, deadline)
        except EngineError as error:
            reasons[engine] = str(error)
    for engine, operation in operations.items():
        reason = operation.wait(deadline, failed[engine])
        if reason is not None:
            groups[engine].abandon()
            reasons[engine] = f"{groups[engine].engine}: {reason}"
    return reasons


class _Operation:
    """A blocking call on a thread of its own, which is left behind when it does not return in time."""

    def __init__(self, what: str, call: Callable[[], None]) -> None:
        self._what = what
        self._call = call
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._started = time.monotonic()
        _start_thread(self._run, what)

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # torch raises various; `wait` reports it in the caller's thread
            self._error = error
        self._done.set()

    def wait(self, deadline: float, failed: Failed) -> str | None:
        """Waits for the end; returns why it failed: the engine's own reason first, an error, or the deadline."""
        while not self._done.wait(_POLL_S):
            if (reason := failed()) is not None:
                return f"failed while {self._what}: {reason}"
            if time.monotonic() >= deadline:
                return f"{self._what} took longer than {time.monotonic() - self._started:.1f} s"
        if self._error is not None:
            return f"failed while {self._what}: {failed() or self._error}"
        return None


_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _start_thread(call: Callable[[], None], name: str) -> None:
    thread = threading.Thread(target=call, name=name, daemon=True)
    _threads.add(thread)
    thread.start()


@atexit.register
def _let_threads_return() -> None:
    """A thread that comes back from torch's code while the interpreter ends takes the process down with SIGABRT.

    Those that were told to end get the time for it; those that wait for an engine stay where they are.
    """
    deadline = time.monotonic() + _EXIT_S
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))


def _keep_past_exit(thing: object) -> None:
    """Leaks it, so that nothing destroys it, not even the interpreter's end: the process's end does."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _backend(store: dist.Store, size: int, backend: str, timeout_s: float) -> Backend:
    """What `torch.distributed` would make for rank 0, under the same store keys."""
    if backend == "gloo":
        timeout = datetime.timedelta(seconds=timeout_s)
        gloo = dist.ProcessGroupGloo(dist.PrefixStore("cpu/", store), 0, size, timeout=timeout)
        gloo._set_sequence_number_for_group()
        return gloo
    different = {k: os.environ.get(k) for k, v in NCCL_ENVIRONMENT.items() if os.environ.get(k) != v}
    if different:
        raise ValueError(f"the trainer's environment has {different}, SGLang's engines {NCCL_ENVIRONMENT}")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = _BACKEND_TIMEOUT
    nccl = dist.ProcessGroupNCCL(dist.PrefixStore("cuda/", store), 0, size, options)
    nccl._set_sequence_number_for_group()
    return nccl
