"""Cuts out and sends the part of a step's routing that one trainer rank needs: the layers of its pipeline
stage, for the tokens that its own routers see.

Entries are sent in the format of the journal (`sync/replay/routing.py`).
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
from verst.runtime.trainer.share.packing import Packed, pack
from verst.runtime.trainer.share.spreader import Name, Spreader, lengths_of


@dataclass(frozen=True)
class Share:
    """The layers and tokens that one rank's routers see. Hashable: equal shares need equal bytes."""

    layers: tuple[int, ...]  # indices among the model's mixture-of-experts layers, ascending
    multiple: int = 1  # lengths of sequences are padded to multiples of this
    cp_rank: int = 0
    cp_size: int = 1
    tp_rank: int = 0
    tp_size: int = 1  # 1 without sequence parallelism, where all tensor-parallel ranks see the same tokens
    entry: int = 1  # bytes of one token in one layer

    def tokens(self, lengths: Sequence[int]) -> Packed:
        """The tokens of a micro-batch that the rank's routers see, in their order. `lengths` are its samples'."""
        mine = pack(lengths, self.multiple, self.cp_rank, self.cp_size)
        part = len(mine.rows) // self.tp_size
        return mine.cut(self.tp_rank * part, (self.tp_rank + 1) * part)

    def places(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """The positions of each sample whose routing the rank gets: all but the last token of those it sees."""
        found = self.tokens(lengths).of_each(len(lengths))
        return [here[here < length - 1] for here, length in zip(found, lengths, strict=True)]

    def cut(self, sample: Sample, positions: np.ndarray) -> np.ndarray:
        """Cuts out the rank's entries of a sample's positions, uint8 [n, layers, entry]."""
        assert sample.routing is not None
        return sample.routing[positions][:, list(self.layers)]

    def size(self, positions: np.ndarray) -> int:
        """Number of bytes that `cut` returns."""
        return len(self.layers) * self.entry * len(positions)


def cut_all(
    share: Share, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample], entry: int
) -> list[Tensor]:
    """Cuts a rank's entries of each micro-batch out of whole samples.

    Each is uint8 [n, layers, entry], sample after sample.
    """
    return [
        torch.from_numpy(
            np.concatenate(
                [np.zeros((0, len(share.layers), entry), np.uint8)]
                + [
                    share.cut(samples[ref.group, ref.index], positions)
                    for ref, positions in zip(micro.samples, share.places(lengths_of(micro)), strict=True)
                ]
            )
        )
        for micro in microbatches
    ]


def entries_of(samples: Sequence[Sample], share: Share, layers: int, entry: int) -> Tensor:
    """Cuts a rank's entries out of whole samples that form one micro-batch.

    Raises ValueError as `require_routing` does.
    """
    require_routing(samples, layers, entry)
    refs = [SampleRef(s.group, s.index, 0, s.length, 0.0, []) for s in samples]
    return cut_all(share, [MicroBatch(refs)], {(s.group, s.index): s for s in samples}, entry)[0]


def require_routing(samples: Sequence[Sample], layers: int, entry: int) -> None:
    """Raises ValueError when a sample has no routing, or routing whose shape is not the model's."""
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
    """Sends each rank of a data-parallel replica its share of the routing.

    Creating one is collective over `group`.
    """

    def __init__(
        self,
        parallel: Parallel,
        source: int,
        group: dist.ProcessGroup,
        share: Share,
        moe_layers: int,
        entry: int,
    ) -> None:
        """`source` is the world rank that holds whole routings, uint8 [tokens, moe_layers, entry]."""
        super().__init__(parallel, source, group, share)
        self._layers, self._moe_layers, self._entry = len(share.layers), moe_layers, entry

    def spread(self, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample]) -> list[Tensor]:
        """Returns this rank's entries of each micro-batch, uint8 [n, layers, entry], in host memory that the
        next call overwrites. Collective over the group.

        `samples` need whole routings on the source; elsewhere only their shape counts. Raises ValueError on
        every rank when a sample has no routing, or routing of another model.
        """
        require_routing(list(samples.values()), self._moe_layers, self._entry)
        parts = self.spread_bytes(microbatches, samples)
        return [part.view(-1, max(1, self._layers), self._entry) for part in parts]
