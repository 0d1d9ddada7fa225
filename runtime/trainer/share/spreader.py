"""Each rank of a data-parallel replica gets its part of a step's samples' bytes, and nothing else.

One rank has read the samples. It cuts each other rank's part out and sends it in one message; where a micro-batch's
bytes lie in it follows from the plan.
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
    """What one rank needs of a sample."""

    def cut(self, sample: Sample, padded_length: int) -> np.ndarray:
        """Its bytes, uint8 of any shape."""
        ...

    def size(self, sample_length: int, padded_length: int) -> int:
        """How many they are, from lengths alone."""
        ...


class Spreader:
    """Sends every rank of a data-parallel replica its share. Making one is collective over `group`."""

    def __init__(self, parallel: Parallel, source: int, group: dist.ProcessGroup, share: Cut) -> None:
        """`source` is the rank of the world that has whole samples."""
        self._rank, self._source, self._group = parallel.rank, source, group
        self._share = share
        self._pinned = parallel.device.type == "cuda"
        self._buffer = torch.empty(0, dtype=torch.uint8)  # this rank's share, reused step after step
        shares: list[Cut] = [share] * dist.get_world_size(group)
        dist.all_gather_object(shares, share, group=group)
        self._shares = dict(zip(dist.get_process_group_ranks(group), shares, strict=True))
        self.sent_bytes = 0  # by this rank in the last step

    def spread_bytes(
        self, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample]
    ) -> list[Tensor]:
        """This rank's bytes of each micro-batch, uint8 [n], sample after sample, in host memory that the next call
        overwrites. Collective; `samples` are needed on the source alone."""
        sizes = [
            sum(self._share.size(ref.length, micro.padded_length) for ref in micro.samples)
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
    """A rank's bytes of all micro-batches, from whole samples."""
    parts = [
        share.cut(samples[ref.group, ref.index], micro.padded_length).reshape(-1)
        for micro in microbatches
        for ref in micro.samples
    ]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *parts]))
