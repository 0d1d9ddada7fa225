"""The part of a step's routing that a trainer rank needs, and how it gets it: the layers of its pipeline stage, the
tokens that its own routers see, and nothing else. It is sent as it was journalled (`sync/replay/routing.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.spreader import Name, Spreader


@dataclass(frozen=True)
class Share:
    """What one rank's routers see. Hashable; equal shares need equal bytes."""

    layers: tuple[int, ...]  # places among the model's mixture-of-experts layers, ascending
    multiple: int = 1  # padded lengths are multiples of it
    cp_rank: int = 0
    cp_size: int = 1
    tp_rank: int = 0
    tp_size: int = 1  # 1 without sequence parallelism: then all tensor-parallel ranks see the same tokens
    entry: int = 1  # bytes of one token in one layer

    def positions(self, padded_length: int) -> np.ndarray:
        """The positions of a sequence that the rank's routers see, in their order."""
        length = padded(padded_length, self.multiple)
        mine = zig_zag(length, self.cp_rank, self.cp_size)
        part = len(mine) // self.tp_size
        return mine[self.tp_rank * part : (self.tp_rank + 1) * part]

    def cut(self, sample: Sample, padded_length: int) -> np.ndarray:
        """The rank's entries of one sample, uint8 [n, layers, entry]."""
        assert sample.routing is not None
        positions = self.positions(padded_length)
        rows = sample.routing[positions[positions < sample.length - 1]]
        return rows[:, list(self.layers)]

    def count(self, sample_length: int, padded_length: int) -> int:
        """The tokens of a sample whose routing the rank gets."""
        return int((self.positions(padded_length) < sample_length - 1).sum())

    def size(self, sample_length: int, padded_length: int) -> int:
        """Bytes of `cut`."""
        return len(self.layers) * self.entry * self.count(sample_length, padded_length)


def padded(length: int, multiple: int) -> int:
    """`length` rounded up."""
    return -(-length // multiple) * multiple


def zig_zag(length: int, rank: int, ranks: int) -> np.ndarray:
    """The positions of a sequence that a context-parallel rank holds, in its order (see `attention.py`)."""
    if ranks == 1:
        return np.arange(length)
    chunks = np.arange(length).reshape(2 * ranks, -1)
    return np.concatenate([chunks[rank], chunks[2 * ranks - 1 - rank]])


def cut_all(
    share: Share, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample], entry: int
) -> list[Tensor]:
    """A rank's entries of each micro-batch, sample after sample, uint8 [n, layers, entry], from whole samples."""
    return [
        torch.from_numpy(
            np.concatenate(
                [np.zeros((0, len(share.layers), entry), np.uint8)]
                + [share.cut(samples[ref.group, ref.index], micro.padded_length) for ref in micro.samples]
            )
        )
        for micro in microbatches
    ]


def entries_of(samples: Sequence[Sample], length: int, share: Share, layers: int, entry: int) -> Tensor:
    """A rank's entries of whole samples of up to `length` tokens that go through the model together. Raises ValueError
    as `require_routing` does."""
    require_routing(samples, layers, entry)
    refs = [SampleRef(s.group, s.index, 0, s.length, 0.0, 0.0) for s in samples]
    return cut_all(share, [MicroBatch(refs, length)], {(s.group, s.index): s for s in samples}, entry)[0]


def require_routing(samples: Sequence[Sample], layers: int, entry: int) -> None:
    """Raises ValueError when a sample has no routing or one of another shape than the model's."""
    for sample in samples:
        where = f"sample {sample.index} of group {sample.group}"
        if sample.routing is None:
            raise ValueError(f"{where} carries no routing, and algorithm.routing_replay is rollout")
        if sample.routing.shape[1:] != (layers, entry):
            raise ValueError(
                f"{where} carries routing of {sample.routing.shape[1:]} layers and bytes per entry; "
                f"the model has {(layers, entry)}"
            )


class RoutingSpreader(Spreader):
    """Sends every rank of a data-parallel replica its share of the routing."""

    def __init__(
        self,
        parallel: Parallel,
        source: int,
        group: dist.ProcessGroup,
        share: Share,
        moe_layers: int,
        entry: int,
    ) -> None:
        """`source` is the rank of the world that has the samples' routing, uint8 [tokens, moe_layers, entry]."""
        super().__init__(parallel, source, group, share)
        self._layers, self._moe_layers, self._entry = len(share.layers), moe_layers, entry

    def spread(self, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample]) -> list[Tensor]:
        """This rank's entries of each micro-batch, uint8 [n, layers, entry], in host memory that the next call
        overwrites. `samples` hold whole routings on the source; elsewhere its shape is enough. Collective. Raises
        ValueError on every rank when a sample has no routing or another model's."""
        require_routing(list(samples.values()), self._moe_layers, self._entry)
        parts = self.spread_bytes(microbatches, samples)
        return [part.view(-1, max(1, self._layers), self._entry) for part in parts]
