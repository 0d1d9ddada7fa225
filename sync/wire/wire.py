"""Messages between the ranks of a group, with deadlines: over gloo or NCCL, and memory for what is under way."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions  # torch.distributed does not pass it on

from verst.sync.layout.schedule import Message
from verst.sync.wire.groups import Backend

_POLL_S = 0.0005
_SPIN_S = 0.00005  # a bucket takes about a millisecond over NVLink


class TransferError(RuntimeError):
    """A transfer that did not complete: late, or what arrived is not what was sent."""


class Wire:
    """The raw backend of a group, its device, and waits with deadlines."""

    def __init__(self, backend: Backend) -> None:
        self.backend: Any = backend  # torch's type stubs know few of its methods
        self.nccl = not isinstance(backend, dist.ProcessGroupGloo)
        # gloo sends from host memory, whatever the parameters' device.
        self.device = torch.device("cuda", torch.cuda.current_device()) if self.nccl else torch.device("cpu")

    def allocate(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] of memory that messages can come from and go to."""
        return torch.zeros(nbytes, dtype=torch.uint8, device=self.device)

    def attach(self, slots: Sequence[torch.Tensor], deadline: float) -> None:
        """Says which memory messages will come from. Collective over the group, once, before the first."""

    def share(self, data: bytes, deadline: float) -> list[bytes]:
        """Every rank's `data`, by rank. Collective over the group."""
        sizes = self._all_gather(torch.tensor([len(data)], dtype=torch.int64), deadline)
        width = max(1, max(int(size) for size in sizes))
        mine = torch.zeros(width, dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
        rows = self._all_gather(mine, deadline)
        return [row[: int(n)].numpy().tobytes() for row, n in zip(rows, sizes, strict=True)]

    def _all_gather(self, mine: torch.Tensor, deadline: float) -> list[torch.Tensor]:
        mine = mine.to(self.device if self.nccl else "cpu")
        rows = [torch.empty_like(mine) for _ in range(self.backend.size())]
        options = AllgatherOptions()
        if not self.nccl:
            options.timeout = _left(deadline)
        work = self.backend.allgather([rows], [mine], options)
        if self.nccl:
            work.wait()
            self.synchronize(deadline)
        else:
            wait(work, deadline)
        return [row.cpu() for row in rows]

    def post(self, slot: torch.Tensor, sends: Sequence[Message], receives: Sequence[Message]) -> list[Any]:
        """Starts the messages, in the order of the current stream."""
        if not sends and not receives:
            return []
        if self.nccl:
            self.backend._start_coalescing()
        works = []
        tags: dict[int, int] = {}
        for message in receives:
            works.append(
                self.backend.recv([part_of(slot, message)], message.peer, next_tag(tags, message.peer))
            )
        tags = {}
        for message in sends:
            works.append(
                self.backend.send([part_of(slot, message)], message.peer, next_tag(tags, message.peer))
            )
        return [self.backend._end_coalescing()] if self.nccl else works

    def finish(self, works: Sequence[Any], deadline: float) -> None:
        """Waits: the current stream does with NCCL, the caller with gloo. Raises TransferError when late."""
        for work in works:
            if self.nccl:
                work.wait()
                continue
            wait(work, deadline)

    def complete(self, works: Sequence[Any], deadline: float, given_up: threading.Event) -> None:
        """Waits on the host. Raises TransferError when late or given up."""
        if not self.nccl:
            return self.finish(works, deadline)
        while not all(work.is_completed() for work in works):
            if time.monotonic() > deadline:
                raise TransferError("not done by the deadline")
            if given_up.is_set():
                break
            time.sleep(_SPIN_S)
        if given_up.is_set():  # an aborted communicator's work counts as completed
            raise TransferError("given up")

    def synchronize(self, deadline: float) -> None:
        """Waits until the current stream has come here. Raises TransferError when the time is up."""
        if self.device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record()
        while not done.query():
            if time.monotonic() > deadline:
                raise TransferError("not done by the deadline")
            time.sleep(_POLL_S)


def wait(work: dist.Work, deadline: float) -> None:
    """On the host, for gloo's. Raises TransferError."""
    try:
        work.wait(_left(deadline))
    except RuntimeError as error:
        late = time.monotonic() >= deadline
        raise TransferError(f"{'not done by the deadline' if late else 'broken off'}: {error}") from error


def next_tag(tags: dict[int, int], peer: int) -> int:
    """Of a message to or from a peer: how many there were before it."""
    tags[peer] = tags.get(peer, -1) + 1
    return tags[peer]


def part_of(slot: torch.Tensor, message: Message) -> torch.Tensor:
    """The bytes of a message."""
    return slot.narrow(0, message.position, message.nbytes)


def _left(deadline: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=max(0.05, deadline - time.monotonic()))


class Slots:
    """The memory for buckets in flight, which several links of one kind may use in turn."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def get(self, count: int, nbytes: int, wire: Wire) -> list[torch.Tensor]:
        """`count` buffers of at least `nbytes`; earlier ones stay with who has them."""
        fits = [t for t in self._tensors if len(t) >= nbytes and t.device == wire.device]
        if len(fits) < count:
            fits = [wire.allocate(nbytes) for _ in range(count)]
            self._tensors = fits
        return fits[:count]
