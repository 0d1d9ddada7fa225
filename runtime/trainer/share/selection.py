"""Cuts out and sends the part of sparse attention's choices (`sync/replay/selection.py`) that one trainer
rank needs: the layers of its pipeline stage, for the tokens of its context-parallel part.

Tensor-parallel ranks hold other heads of the same tokens, so they need the same choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch.distributed as dist
from torch import Tensor

from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import MicroBatch, SampleRef
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.packing import Packed, pack
from verst.runtime.trainer.share.spreader import Name, Spreader, message_of
from verst.sync.replay.selection import offsets, sizes


@dataclass(frozen=True)
class SelectionShare:
    """The layers and tokens that one rank's sparse attention sees."""

    # Rows of `Sample.selected`, ascending: indices among the layers that choose.
    layers: tuple[int, ...]
    all_layers: int
    top_k: int
    multiple: int = 1  # lengths of sequences are padded to multiples of this
    cp_rank: int = 0
    cp_size: int = 1

    def tokens(self, lengths: Sequence[int]) -> Packed:
        """The tokens of a micro-batch that the rank holds, in its order. `lengths` are its samples'."""
        return pack(lengths, self.multiple, self.cp_rank, self.cp_size)

    def places(self, lengths: Sequence[int]) -> list[np.ndarray]:
        """The positions of each sample that the rank holds, in its order, without the last token's."""
        found = self.tokens(lengths).of_each(len(lengths))
        return [here[here < length - 1] for here, length in zip(found, lengths, strict=True)]

    def size(self, positions: np.ndarray) -> int:
        """Number of bytes that `cut` returns."""
        return len(self.layers) * int(sizes(positions, self.top_k).sum())

    def cut(self, sample: Sample, positions: np.ndarray) -> np.ndarray:
        """Cuts out the rank's bytes of a sample's positions, uint8 [layers, n]."""
        assert sample.selected is not None
        begin = offsets(sample.length - 1, self.top_k)
        # Consecutive positions are copied in one piece.
        runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
        pieces = [
            sample.selected[list(self.layers), begin[run[0]] : begin[run[-1] + 1]] for run in runs if len(run)
        ]
        empty = np.zeros((len(self.layers), 0), np.uint8)
        return np.concatenate([empty, *pieces], axis=1)

    def require(self, samples: Sequence[Sample]) -> None:
        """Raises ValueError when a whole sample has no choices, or choices of another model."""
        for sample in samples:
            where = f"sample {sample.index} of group {sample.group}"
            if sample.selected is None:
                raise ValueError(
                    f"{where} carries no choices of sparse attention, and algorithm.routing_replay is rollout"
                )
            wanted = (self.all_layers, int(offsets(sample.length - 1, self.top_k)[-1]))
            if sample.selected.shape != wanted:
                raise ValueError(
                    f"{where} carries choices of {sample.selected.shape} layers and bytes; its model's: {wanted}"
                )


def selected_of(samples: Sequence[Sample], share: SelectionShare) -> Tensor:
    """Cuts a rank's bytes out of whole samples that form one micro-batch.

    Raises ValueError as `SelectionShare.require` does.
    """
    share.require(samples)
    refs = [SampleRef(s.group, s.index, 0, s.length, 0.0, []) for s in samples]
    return message_of(share, [MicroBatch(refs)], {(s.group, s.index): s for s in samples})


class SelectionSpreader:
    """Sends each rank of a data-parallel replica its share of the choices.

    Creating one is collective over `group`.
    """

    def __init__(
        self, parallel: Parallel, source: int, group: dist.ProcessGroup, share: SelectionShare
    ) -> None:
        self._share, self._is_source = share, parallel.rank == source
        self._spreader = Spreader(parallel, source, group, share)

    def spread(self, microbatches: Sequence[MicroBatch], samples: Mapping[Name, Sample]) -> list[Tensor]:
        """Returns this rank's bytes of each micro-batch. Collective over the group.

        Raises ValueError on the source as `SelectionShare.require` does.
        """
        if self._is_source:
            self._share.require(list(samples.values()))
        return self._spreader.spread_bytes(microbatches, samples)
