"""Broadcasts whole tensors from the trainer's source rank to engines, as stock SGLang receives them: the baseline.

SGLang's /update_weights_from_distributed receives a bucket's tensors one after another. `sync/wire/groups.py` makes the
groups and explains why no wait lasts forever.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist

from verst.sync.wire.groups import (
    POLL_S,
    Backend,
    EngineError,
    Failed,
    Operation,
    Source,
    join,
    keep_past_exit,
    start_thread,
)


def connect(
    source: Source,
    engine: str,
    name: str,
    engine_ranks: int,
    backend: Literal["gloo", "nccl"],
    timeout_s: float,
    failed: Failed,
) -> EngineGroup:
    """Joins group `name` at `source` together with the `engine_ranks` ranks of an engine that was told to join it.

    `engine` is the engine's name in messages. Raises EngineError if `failed` reports a reason or `timeout_s` is over.
    """
    meet = partial(join, source.host, source.port, name, 0, 1 + engine_ranks, backend)
    operation = Operation(f"joining group {name}", meet)
    reason = operation.wait(time.monotonic() + timeout_s, failed)
    if reason is not None:
        raise EngineError(f"{engine}: {reason}")
    return EngineGroup(engine, operation.result())


def as_sent(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as it is sent: one-byte floating-point numbers as uint8, because gloo does not know their types."""
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.view(torch.uint8) if narrow else tensor


class EngineGroup:
    """The process group of the source and one engine."""

    def __init__(self, engine: str, backend: Backend) -> None:
        self.engine = engine
        self._backend: Backend | None = backend
        self._given_up = threading.Event()

    def start(self, tensors: Sequence[torch.Tensor], deadline: float) -> Operation[None]:
        """Starts to broadcast whole tensors, in order. They must not change until the operation is done."""
        backend = self._backend
        if backend is None:
            raise EngineError(f"{self.engine}: its group was abandoned")
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = 0, 0
        if isinstance(backend, dist.ProcessGroupGloo):
            # gloo cannot abort, so this timeout ends its threads. With NCCL, the watchdog would end the process.
            options.timeout = datetime.timedelta(seconds=max(1.0, deadline - time.monotonic()))
        contiguous = [as_sent(tensor.contiguous()) for tensor in tensors]
        if contiguous and contiguous[0].is_cuda:
            torch.cuda.current_stream().synchronize()  # the thread uses another stream

        def broadcast_all() -> None:
            if contiguous and contiguous[0].is_cuda:
                torch.cuda.set_device(contiguous[0].device)
            # torch's type stubs lack this call
            works = [backend.broadcast([tensor], options) for tensor in contiguous]  # type: ignore[union-attr]
            for work in works:
                while not work.is_completed():
                    if self._given_up.wait(POLL_S):
                        return
                work.wait()

        return Operation(f"broadcasting {len(tensors)} tensors", broadcast_all)

    def abandon(self) -> None:
        """Breaks the connections at once; the engine's side then fails by itself or at its own timeout."""
        self._given_up.set()
        if self._backend is not None:
            keep_past_exit(self._backend)  # its destructor would wait for operations that never end
            # In a thread, because aborting NCCL may wait for a communicator that is still being made.
            start_thread(self._backend.abort, f"aborting the group of {self.engine}")
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
    """Broadcasts one bucket to several engines at once. Returns the reasons of the engines that failed.

    `deadline` is on time.monotonic's clock. The groups of failed engines are abandoned. No failure means that every
    tensor was sent, not that the engine has loaded it: only the engine's answer says that.
    """
    operations: dict[int, Operation[None]] = {}
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
