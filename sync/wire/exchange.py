"""Runs a rank's schedule over a process group: sends or receives all buckets of a version, with gloo or NCCL.

Each end has two slots: while one bucket is on the wire, the next is packed and the one before is unpacked. Over NCCL a
receiver waits on the host only at the end, and streams and events keep the order. Otherwise each wait blocks the host,
for at most the time that is left.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from verst.sync.layout.blocks import DTYPES
from verst.sync.layout.schedule import Bucket
from verst.sync.wire.checksum import segment_checksums
from verst.sync.wire.wire import Slots, TransferError, Wire

SLOTS = 2
_VERSION_STEP = 0x2545F4914F6CDD1D  # odd; makes the checksums of two versions differ


class _Prepared:
    """A bucket prepared for its slot and the rank's memory: pairs of views that are copied into one another."""

    def __init__(self, bucket: Bucket, slot: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
        self.bucket = bucket
        self.slot = slot[: bucket.nbytes]
        views = [_views(self.slot, parameters, move) for move in bucket.moves]
        # torch copies a list of tensors with few kernels only if all of them are dense and of the same dtype.
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
        """Copies from memory to the slot."""
        for in_slot, in_memory in self.groups:
            if in_slot:
                torch._foreach_copy_(in_slot, in_memory)

    def unpack(self) -> None:
        """Copies from the slot to memory."""
        for in_slot, in_memory in self.groups:
            if in_slot:
                torch._foreach_copy_(in_memory, in_slot)

    def sign(self, version: int) -> None:
        """Writes the checksums of the slot's segments into the slot."""
        if len(self.checks):
            self.slot.view(torch.int64)[self.checks] = self._sums(version)

    def wrong(self, version: int) -> torch.Tensor:
        """Which segments have another checksum than the sender's: bool [segments]."""
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


class _End:
    """The common part of both ends: the slots, and the buckets prepared for them."""

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
        self.memory = (slots or Slots()).get(count, largest, wire)
        self.nbytes = sum(len(slot) for slot in self.memory)
        self._buckets = [_Prepared(b, self.memory[i % count], parameters) for i, b in enumerate(buckets)]
        self._slots = count
        cuda = wire.device.type == "cuda"
        self._streams = [torch.cuda.Stream(wire.device) for _ in range(3)] if cuda else []

    @contextlib.contextmanager
    def _on(self, number: int) -> Iterator[Any]:
        """Queues the work inside on one of the rank's streams; without a GPU, the work is done at once."""
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
        self.given_up = threading.Event()  # another thread sets it to stop the sending

    @torch.no_grad()
    def send(self, version: int, deadline: float) -> None:
        """Sends a whole version. Raises TransferError if it is not sent by the deadline."""
        works: list[list[Any]] = []
        with self._on(0) as stream:
            if stream is not None:
                stream.wait_stream(torch.cuda.default_stream(self.wire.device))
            for number, bucket in enumerate(self._buckets):
                if number >= self._slots:
                    # The host waits, so that no queued work can pack into a slot after a failure.
                    self.wire.complete(works[number - self._slots], deadline, self.given_up)
                bucket.pack()
                bucket.sign(version)
                works.append(self.wire.post(bucket.slot, bucket.bucket.sends, []))
            for last in works[-self._slots :]:
                self.wire.complete(last, deadline, self.given_up)


class Receiver(_End):
    """An engine rank's end of the link."""

    @torch.no_grad()
    def receive(self, version: int, deadline: float) -> None:
        """Receives a whole version into the parameters.

        Raises TransferError if it is not done by the deadline, or if a checksum is wrong. The parameters then belong
        to no version.
        """
        posted: list[list[Any]] = []
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

    def _post(self, number: int, unpacked: list[Any]) -> list[Any]:
        """Starts to receive a bucket as soon as the bucket before it in the same slot is unpacked."""
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
    """Some segments arrived with other bytes than were sent; `tensors` are indices into the plan's names."""

    def __init__(self, tensors: list[int], version: int) -> None:
        super().__init__(f"version {version}: wrong checksums in tensors {tensors[:10]} of the plan")
        self.tensors = tensors
