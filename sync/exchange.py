"""Runs a rank's schedule over a process group: buckets in flight, both ends, with gloo or NCCL.

Two slots by default: while one bucket is on the wire the next is packed, and the one before is unpacked. On a
GPU nothing waits on the host until the end; streams and events keep the order. On a CPU each wait is a
blocking one with the time that is left.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import AllgatherOptions  # torch.distributed does not pass it on

from verst.sync.blocks import DTYPES
from verst.sync.checksum import segment_checksums
from verst.sync.groups import Backend
from verst.sync.schedule import Bucket, Message

SLOTS = 2
_POLL_S = 0.0005
_SPIN_S = 0.00005  # a bucket takes about a millisecond over NVLink
_VERSION_STEP = 0x2545F4914F6CDD1D  # odd; tells the checksums of one version from those of another


class TransferError(RuntimeError):
    """A transfer that did not complete: late, or what arrived is not what was sent."""


class Wire:
    """The raw backend of a group, its device, and waits with deadlines."""

    def __init__(self, backend: Backend) -> None:
        self.backend: Any = backend  # torch's type stubs know few of its methods
        self.nccl = not isinstance(backend, dist.ProcessGroupGloo)
        # gloo sends from host memory, whatever the parameters' device.
        self.device = torch.device("cuda", torch.cuda.current_device()) if self.nccl else torch.device("cpu")

    def share(self, data: bytes, deadline: float) -> list[bytes]:
        """Every rank's `data`, by rank. Collective over the group."""
        sizes = self._all_gather(torch.tensor([len(data)], dtype=torch.int64), deadline)
        width = max(1, max(int(size) for size in sizes))
        mine = torch.zeros(width, dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
        rows = self._all_gather(mine, deadline)
        return [row[: int(n)].numpy().tobytes() for row, n in zip(rows, sizes, strict=True)]

    def _all_gather(self, mine: torch.Tensor, deadline: float) -> list[torch.Tensor]:
        mine = mine.to(self.device)
        rows = [torch.empty_like(mine) for _ in range(self.backend.size())]
        options = AllgatherOptions()
        if not self.nccl:
            options.timeout = _left(deadline)
        self.finish([self.backend.allgather([rows], [mine], options)], deadline)
        if self.nccl:
            self.synchronize(deadline)
        return [row.cpu() for row in rows]

    def post(
        self, slot: torch.Tensor, sends: Sequence[Message], receives: Sequence[Message]
    ) -> list[dist.Work]:
        """Starts the messages, in the order of the current stream."""
        if not sends and not receives:
            return []
        if self.nccl:
            self.backend._start_coalescing()
        works = []
        tags: dict[int, int] = {}
        for message in receives:
            works.append(self.backend.recv([_part(slot, message)], message.peer, _tag(tags, message.peer)))
        tags = {}
        for message in sends:
            works.append(self.backend.send([_part(slot, message)], message.peer, _tag(tags, message.peer)))
        return [self.backend._end_coalescing()] if self.nccl else works

    def finish(self, works: Sequence[dist.Work], deadline: float) -> None:
        """Waits: the current stream does with NCCL, the caller with gloo. Raises TransferError when late."""
        for work in works:
            if self.nccl:
                work.wait()
                continue
            try:
                work.wait(_left(deadline))
            except RuntimeError as error:
                late = time.monotonic() >= deadline
                raise TransferError(
                    f"{'not done by the deadline' if late else 'broken off'}: {error}"
                ) from error

    def complete(self, works: Sequence[dist.Work], deadline: float, given_up: threading.Event) -> None:
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
        if not self.nccl:
            return
        done = torch.cuda.Event()
        done.record()
        while not done.query():
            if time.monotonic() > deadline:
                raise TransferError("not done by the deadline")
            time.sleep(_POLL_S)


def _tag(tags: dict[int, int], peer: int) -> int:
    tags[peer] = tags.get(peer, -1) + 1
    return tags[peer]


def _part(slot: torch.Tensor, message: Message) -> torch.Tensor:
    return slot.narrow(0, message.position, message.nbytes)


def _left(deadline: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=max(0.05, deadline - time.monotonic()))


class _Prepared:
    """A bucket tied to a slot and to the rank's memory: two lists of views that copy into one another."""

    def __init__(self, bucket: Bucket, slot: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
        self.bucket = bucket
        self.slot = slot[: bucket.nbytes]
        views = [_views(self.slot, parameters, move) for move in bucket.moves]
        # torch copies a list of dense tensors with few kernels, but only where all of them are.
        dense = [p.is_contiguous() and v.dtype == p.dtype for v, p in views]
        self.groups = [
            ([v for (v, _), d in zip(views, dense, strict=True) if d == which],
             [p for (_, p), d in zip(views, dense, strict=True) if d == which])
            for which in (True, False)
        ]  # fmt: skip
        device = slot.device
        self.rows = torch.from_numpy(bucket.rows).to(device)
        self.checks = torch.from_numpy(bucket.checks).to(device)

    def pack(self) -> None:
        """Memory to slot."""
        for in_slot, in_memory in self.groups:
            if in_slot:
                torch._foreach_copy_(in_slot, in_memory)

    def unpack(self) -> None:
        """Slot to memory."""
        for in_slot, in_memory in self.groups:
            if in_slot:
                torch._foreach_copy_(in_memory, in_slot)

    def sign(self, version: int) -> None:
        """Writes the checksums of what is in the slot."""
        if len(self.checks):
            self.slot.view(torch.int64)[self.checks] = self._sums(version)

    def wrong(self, version: int) -> torch.Tensor:
        """bool [segments]: whose checksum is not the sender's."""
        if not len(self.checks):
            return torch.empty(0, dtype=torch.bool, device=self.slot.device)
        return self.slot.view(torch.int64)[self.checks] != self._sums(version)

    def _sums(self, version: int) -> torch.Tensor:
        return segment_checksums(self.slot, self.rows) + _wrapped(version * _VERSION_STEP)


def _wrapped(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _views(
    slot: torch.Tensor, parameters: Sequence[torch.Tensor], move: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = move["length"].tolist()
    place = parameters[move["parameter"]].as_strided(shape, move["stride"].tolist(), int(move["offset"]))
    part = slot.narrow(0, int(move["position"]), int(move["nbytes"]))
    return part.view(DTYPES[move["dtype"]]).view(shape), place


class Slots:
    """The memory for buckets in flight, which several links may use in turn."""

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []

    def get(self, count: int, nbytes: int, device: torch.device) -> list[torch.Tensor]:
        """`count` buffers of at least `nbytes`; earlier ones stay with who has them."""
        fits = [t for t in self._tensors if len(t) >= nbytes and t.device == device]
        if len(fits) < count:
            fits = [torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(count)]
            self._tensors = fits
        return fits[:count]


class _End:
    """What both ends have: the slots and the buckets tied to them."""

    def __init__(
        self,
        wire: Wire,
        buckets: Sequence[Bucket],
        parameters: Sequence[torch.Tensor],
        slots: Slots | None = None,
    ) -> None:
        self.wire = wire
        largest = max((bucket.nbytes for bucket in buckets), default=0)
        count = min(SLOTS, len(buckets))
        memory = (slots or Slots()).get(count, largest, wire.device)
        self.nbytes = sum(len(slot) for slot in memory)
        self._buckets = [_Prepared(b, memory[i % count], parameters) for i, b in enumerate(buckets)]
        self._slots = count
        cuda = wire.device.type == "cuda"
        self._streams = [torch.cuda.Stream(wire.device) for _ in range(3)] if cuda else []

    @contextlib.contextmanager
    def _on(self, number: int) -> Iterator[Any]:
        """Work inside is queued on one of the rank's streams; without a GPU it is simply done."""
        if not self._streams:
            yield None
            return
        with torch.cuda.stream(self._streams[number]):
            yield self._streams[number]


class Sender(_End):
    """A trainer rank's end of the link to one engine."""

    def __init__(
        self,
        wire: Wire,
        buckets: Sequence[Bucket],
        parameters: Sequence[torch.Tensor],
        slots: Slots | None = None,
    ) -> None:
        super().__init__(wire, buckets, parameters, slots)
        self.given_up = threading.Event()  # set by another thread: sends no more

    @torch.no_grad()
    def send(self, version: int, deadline: float) -> None:
        """Sends a whole version. Raises TransferError when it is not through by the deadline."""
        works: list[list[dist.Work]] = []
        with self._on(0) as stream:
            if stream is not None:
                stream.wait_stream(torch.cuda.default_stream(self.wire.device))
            for number, bucket in enumerate(self._buckets):
                if number >= self._slots:
                    # The host waits, so that nothing is left that could pack into a slot after a failure.
                    self.wire.complete(works[number - self._slots], deadline, self.given_up)
                bucket.pack()
                bucket.sign(version)
                works.append(self.wire.post(bucket.slot, bucket.bucket.sends, []))
            for last in works[-self._slots :]:
                self.wire.complete(last, deadline, self.given_up)


class Receiver(_End):
    """An engine rank's end."""

    @torch.no_grad()
    def receive(self, version: int, deadline: float) -> None:
        """Receives a whole version into the parameters.

        Raises TransferError when the time is up or a checksum is wrong: the parameters are then of no
        version.
        """
        posted: list[list[dist.Work]] = []
        unpacked: list[Any] = []
        wrong: list[torch.Tensor] = []
        for number, bucket in enumerate(self._buckets):
            while len(posted) < min(number + self._slots, len(self._buckets)):
                posted.append(self._post(len(posted), unpacked))
            with self._on(1) as passing:
                self.wire.finish(posted[number], deadline)
                passed = self.wire.post(bucket.slot, bucket.bucket.pass_on, bucket.bucket.passed)
                self.wire.finish(passed, deadline)
            with self._on(2) as stream:
                if stream is not None:
                    stream.wait_stream(passing)
                wrong.append(bucket.wrong(version))
                bucket.unpack()
                unpacked.append(None if stream is None else stream.record_event())
        with self._on(2):
            self.wire.synchronize(deadline)
            self._require_right(wrong, version)

    def _post(self, number: int, unpacked: list[Any]) -> list[dist.Work]:
        """Begins to receive a bucket as soon as the one that was in its slot is unpacked."""
        with self._on(0) as stream:
            if stream is not None and number >= self._slots:
                stream.wait_event(unpacked[number - self._slots])
            bucket = self._buckets[number]
            return self.wire.post(bucket.slot, [], bucket.bucket.receives)

    def _require_right(self, wrong: list[torch.Tensor], version: int) -> None:
        if not torch.cat(wrong).any():
            return
        tensors = np.unique(
            np.concatenate(
                [b.bucket.tensors[w.cpu().numpy()] for b, w in zip(self._buckets, wrong, strict=True)]
            )
        )
        raise WrongChecksum(tensors.tolist(), version)


class WrongChecksum(TransferError):
    """Segments whose bytes are not those that were sent; `tensors` are numbers in the plan's names."""

    def __init__(self, tensors: list[int], version: int) -> None:
        super().__init__(f"version {version}: wrong checksums in tensors {tensors[:10]} of the plan")
        self.tensors = tensors
