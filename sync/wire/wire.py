"""Messages with deadlines between the ranks of a group, over gloo or NCCL, and the memory for buckets in flight."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions  # torch.distributed does not re-export it

from verst.sync.layout.schedule import Message
from verst.sync.wire.groups import Backend

_POLL_S = 0.0005
_SPIN_S = 0.00005  # a bucket takes about a millisecond over NVLink


class TransferError(RuntimeError):
    """A transfer failed: it was late, or the bytes that arrived are not those that were sent."""


class Wire:
    """A group's raw backend and its device, with waits that have deadlines."""

    def __init__(self, backend: Backend) -> None:
        self.backend: Any = backend  # torch's type stubs know few of its methods
        self.nccl = not isinstance(backend, dist.ProcessGroupGloo)
        # gloo sends from host memory, even if the parameters are on a GPU.
        self.device = torch.device("cuda", torch.cuda.current_device()) if self.nccl else torch.device("cpu")

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Allocates a buffer, uint8 [nbytes], that messages can be sent from and received into."""
        return torch.zeros(nbytes, dtype=torch.uint8, device=self.device)

    def attach(self, slots: Sequence[torch.Tensor], deadline: float) -> None:
        """Registers the memory that messages will be sent from. Collective; called once, before the first message."""

    def share(self, data: bytes, deadline: float) -> list[bytes]:
        """Exchanges `data` between all ranks; returns every rank's, in rank order. Collective over the group."""
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
        """Waits for the messages: with NCCL the current stream waits, with gloo the caller.

        Raises TransferError after the deadline.
        """
        for work in works:
            if self.nccl:
                work.wait()
                continue
            wait(work, deadline)

    def complete(self, works: Sequence[Any], deadline: float, given_up: threading.Event) -> None:
        """Waits for the messages on the host. Raises TransferError after the deadline, or once `given_up` is set."""
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
        """Waits until the current stream has done its queued work. Raises TransferError after the deadline."""
        if self.device.type != "cuda":
            return
        done = torch.cuda.Event()
        done.record()
        while not done.query():
            if time.monotonic() > deadline:
                raise TransferError("not done by the deadline")
            time.sleep(_POLL_S)


def wait(work: dist.Work, deadline: float) -> None:
    """Waits for gloo work on the host. Raises TransferError if it fails or is not done by the deadline."""
    try:
        work.wait(_left(deadline))
    except RuntimeError as error:
        late = time.monotonic() >= deadline
        raise TransferError(f"{'not done by the deadline' if late else 'broken off'}: {error}") from error


def next_tag(tags: dict[int, int], peer: int) -> int:
    """The tag of the next message to or from a peer: the number of messages before it."""
    tags[peer] = tags.get(peer, -1) + 1
    return tags[peer]


def part_of(slot: torch.Tensor, message: Message) -> torch.Tensor:
    """The part of the slot that holds a message."""
    return slot.narrow(0, message.position, message.nbytes)


def _left(deadline: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=max(0.05, deadline - time.monotonic()))


class Slots:
    """The memory for buckets in flight. Several links of one kind can use it in turn."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def get(self, count: int, nbytes: int, wire: Wire) -> list[torch.Tensor]:
        """`count` buffers of at least `nbytes` each. Larger ones are allocated if needed; links keep those they got."""
        fits = [t for t in self._tensors if len(t) >= nbytes and t.device == wire.device]
        if len(fits) < count:
            fits = [wire.allocate(nbytes) for _ in range(count)]
            self._tensors = fits
        return fits[:count]
