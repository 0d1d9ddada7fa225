"""Sends each rank of a data-parallel replica its part of the samples' bytes, and nothing else.

One rank holds the whole samples. It cuts out the part of each other rank and sends it in one message. The
receiver computes from the plan where each micro-batch's bytes are in the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch
from verst.runtime.trainer.parallel import Parallel

Name = tuple[int, int]  # (group, index)


class Cut(Protocol):
    """Cuts out the part of a sample that one rank needs."""

    def places(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """Of each sample of a micro-batch, by their lengths: the positions of which the rank gets bytes, int64."""
        ...

    def cut(self, sample: Sample, positions: np.ndarray) -> np.ndarray:
        """Returns the bytes of a sample's positions, uint8 of any shape."""
        ...

    def size(self, positions: np.ndarray) -> int:
        """Number of bytes that `cut` returns."""
        ...


class Spreader:
    """Sends every rank of a data-parallel replica its share. Creating one is collective over `group`."""

    def __init__(self, parallel: Parallel, source: int, group: dist.ProcessGroup, share: Cut) -> None:
        """`source` is the world rank that holds whole samples, `share` what this rank needs of them."""
        self._rank, self._source, self._group = parallel.rank, source, group
        self._share = share
        self._pinned = parallel.device.type == "cuda"
        self._buffer = torch.empty(0, dtype=torch.uint8)  # for this rank's share, reused in every step
        shares: list[Cut] = [share] * dist.get_world_size(group)
        dist.all_gather_object(shares, share, group=group)
        self._shares = dict(zip(dist.get_process_group_ranks(group), shares, strict=True))
        self.sent_bytes = 0  # by this rank, in the last call

    def spread_bytes(
        self, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample]
    ) -> list[Tensor]:
        """Returns this rank's bytes of each micro-batch, uint8 [n], sample after sample, in host memory that
        the next call overwrites. Collective over the group; only the source needs `samples`."""
        sizes = [
            sum(self._share.size(positions) for positions in self._share.places(lengths_of(micro)))
            for micro in microbatches
        ]
        mine = self._room(sum(sizes))
        self.sent_bytes = 0
        if self._rank == self._source:
            for rank, share in self._shares.items():
                message = message_of(share, microbatches, samples)
                if rank == self._rank:
                    mine.copy_(message)
                elif len(message):
                    dist.send(message, rank, group=self._group)
                    self.sent_bytes += len(message)
        elif len(mine):
            dist.recv(mine, self._source, group=self._group)
        return list(mine.split(sizes))

    def _room(self, size: int) -> Tensor:
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._buffer[:size]


def message_of(share: Cut, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample]) -> Tensor:
    """Cuts a rank's bytes of all micro-batches out of whole samples."""
    parts = [
        share.cut(samples[ref.group, ref.index], positions).reshape(-1)
        for micro in microbatches
        for ref, positions in zip(micro.samples, share.places(lengths_of(micro)), strict=True)
    ]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *parts]))


def lengths_of(micro: MicroBatch) -> list[int]:
    """The lengths of a micro-batch's samples, without padding."""
    return [ref.length for ref in micro.samples]
