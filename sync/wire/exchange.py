"""Runs a rank's schedule over a process group: buckets in flight, both ends, with gloo or NCCL.

Two slots by default: while one bucket is on the wire the next is packed, and the one before is unpacked. On a
GPU nothing waits on the host until the end; streams and events keep the order. On a CPU each wait is a
blocking one with the time that is left.
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
_VERSION_STEP = 0x2545F4914F6CDD1D  # odd; tells the checksums of one version from those of another


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
        self.memory = (slots or Slots()).get(count, largest, wire)
        self.nbytes = sum(len(slot) for slot in self.memory)
        self._buckets = [_Prepared(b, self.memory[i % count], parameters) for i, b in enumerate(buckets)]
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
        works: list[list[Any]] = []
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
