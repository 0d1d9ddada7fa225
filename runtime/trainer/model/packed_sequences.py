"""Tells a model's layers where the sequences of a packed micro-batch begin and end.

A micro-batch is one row of tokens (`share/packing.py`), so to every layer but two it is one long sequence [t, 1, ...].
Rotary positions count from each sequence's own start (`PackedPositions`), and attention stays within a sequence
(`attention.py`, `sparse_attention.py`). Both read a `PackedSequences`, which goes through Megatron's layers as its
`packed_seq_params`. Its format is not Megatron's "thd": there Megatron would apply rotary positions sequence by
sequence in every layer, waiting for the GPU each time, and in a context-parallel world guess from the total length
whether positions start anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

# Sequences are attended to in one call of torch's attention if the shortest has this share of the longest's tokens.
_ALIKE = 0.75


class PackedSequences(PackedSeqParams):
    """The sequences of one micro-batch.

    `lengths` are theirs with padding, over all context-parallel ranks. `positions`, int64 [t], has the position of each
    of this rank's tokens in its own sequence.
    """

    def __init__(self, lengths: Sequence[int], positions: Tensor) -> None:
        super().__init__(qkv_format="sbhd")
        self.lengths, self.positions = tuple(lengths), positions
        self.longest = max(lengths)

    @cached_property
    def ends(self) -> Tensor:
        """Where each sequence begins and the last one ends, over all context-parallel ranks, int32 [sequences + 1]."""
        return self.bounds(self.lengths)

    @cached_property
    def alike(self) -> tuple[list[Tensor], Tensor]:
        """Sequences in groups of similar length, for kernels that take rectangles only.

        Returns indices of the tokens of each group, int64 [sequences, longest]; a shorter sequence repeats its last
        token. And for each token its index in all groups together, flattened and joined, int64 [t].
        """
        starts = np.cumsum([0, *self.lengths])
        groups: list[list[int]] = []
        for at in sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i]):
            if not groups or self.lengths[at] < _ALIKE * self.lengths[groups[-1][0]]:
                groups.append([])
            groups[-1].append(at)
        tokens, places, used = [], np.zeros(starts[-1], np.int64), 0
        for group in groups:
            width = self.lengths[group[0]]
            own = np.array([self.lengths[i] for i in group])
            within = np.minimum(np.arange(width), own[:, None] - 1)
            tokens.append(starts[group][:, None] + within)
            for row, i in enumerate(group):
                places[starts[i] : starts[i + 1]] = used + row * width + np.arange(self.lengths[i])
            used += len(group) * width
        return [self._on_device(one) for one in tokens], self._on_device(places)

    def seen(self, rank: int, ranks: int) -> Seen:
        """What the queries of a context-parallel rank attend to. Cached for the micro-batch."""
        key = (rank, ranks)
        if key not in self._seen:
            self._seen[key] = Seen(self, rank, ranks)
        return self._seen[key]

    @cached_property
    def _seen(self) -> dict[tuple[int, int], Seen]:
        return {}

    def bounds(self, lengths: Sequence[int]) -> Tensor:
        """Cumulative lengths from 0 on, int32 [n + 1], on the tokens' device."""
        return self._on_device(np.cumsum([0, *lengths]).astype(np.int32))

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.positions.device, non_blocking=True)


class Seen:
    """Chunks of queries of one context-parallel rank, two of each sequence, and the keys before and in each.

    The last query of a chunk sees all its keys, the one before it all but the last, and so on. Keys are gathered from
    all ranks, rank after rank.
    """

    def __init__(self, packed: PackedSequences, rank: int, ranks: int) -> None:
        own = np.array(packed.lengths) // ranks  # tokens of each sequence on one rank
        starts = np.cumsum([0, *own])
        self.queries: list[int] = []  # the length of each chunk
        self.keys: list[int] = []  # how many keys it sees
        gathered = []
        for start, mine in zip(starts[:-1], own, strict=True):
            chunk = mine // 2
            for last in (rank, 2 * ranks - 1 - rank):
                places = np.arange(last + 1)
                holder = np.where(places < ranks, places, 2 * ranks - 1 - places)
                first = holder * starts[-1] + start + np.where(places < ranks, 0, chunk)
                gathered.append((first[:, None] + np.arange(chunk)).reshape(-1))
                self.queries.append(int(chunk))
                self.keys.append(int(chunk) * (last + 1))
        self.gathered = packed._on_device(
            np.concatenate(gathered)
        )  # int64, the keys of all chunks one after another
        self.query_ends, self.key_ends = packed.bounds(self.queries), packed.bounds(self.keys)


class PackedPositions(torch.nn.Module):
    """Rotary embeddings by each token's position in its own sequence; stands in for Megatron's module.

    Megatron asks for the length to embed and passes it on. Here the "length" is the micro-batch's `PackedSequences`.
    """

    def __init__(self, rotary: torch.nn.Module) -> None:
        super().__init__()
        self.rotary: Any = rotary
        self.packed: PackedSequences | None = None  # of the next call, for layers that do not pass theirs on

    def get_rotary_seq_len(
        self, context: Any, transformer: Any, states: Any, config: Any, packed: Any = None
    ) -> Any:
        """The sequences to embed, in place of a length."""
        found = packed or self.packed
        if not isinstance(found, PackedSequences):
            raise TypeError("the model was called without the PackedSequences of its micro-batch")
        return found

    def forward(self, packed: PackedSequences, *unused: Any, **others: Any) -> Any:
        """Returns [t, 1, 1, width], with YaRN also its factor for the attention's magnitude."""
        found = self.rotary(_rounded(packed.longest), packed_seq=True)  # not cut for context parallelism
        if isinstance(found, tuple):
            return found[0].index_select(0, packed.positions), *found[1:]
        return found.index_select(0, packed.positions)

    def get_cached_cos_sin(
        self, packed: PackedSequences, dtype: torch.dtype, **others: Any
    ) -> tuple[Tensor, ...]:
        """Returns cosines and sines, for Megatron's fused kernel."""
        found = self.rotary.get_cached_cos_sin(_rounded(packed.longest), dtype=dtype, packed_seq=True)
        return tuple(one.index_select(0, packed.positions) for one in found)


def _rounded(length: int) -> int:
    """A power of 2 that is at least `length`: Megatron keeps the embeddings of the last 32 lengths."""
    return 1 << (length - 1).bit_length()
