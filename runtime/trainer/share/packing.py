"""Says where the tokens of packed sequences lie on a rank.

A micro-batch is one row of tokens: its sequences stand one after another. Each is padded on the right to a multiple of
what tensor and context parallelism divide sequences by, and to nothing more. With context parallelism each sequence is
cut into 2c chunks, of which rank r holds chunks r and 2c-1-r, so that every rank has the same work in attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packed:
    """The tokens of a micro-batch on one context-parallel rank, in its order."""

    rows: np.ndarray  # int64 [t], the sample of each token, ascending
    positions: (
        np.ndarray
    )  # int64 [t], its position in its sequence; at and behind the sample's length: padding

    def cut(self, begin: int, end: int) -> Packed:
        """The tokens from `begin` up to `end`."""
        return Packed(self.rows[begin:end], self.positions[begin:end])

    def of_each(self, samples: int) -> list[np.ndarray]:
        """The positions of each of so many samples that are here, in order."""
        return np.split(self.positions, np.searchsorted(self.rows, np.arange(1, samples)))[:samples]


def padded(lengths: Sequence[int], multiple: int) -> list[int]:
    """The lengths of a micro-batch's sequences with their padding. Without samples there is one, of padding alone."""
    return [-(-length // multiple) * multiple for length in lengths] or [multiple]


def pack(lengths: Sequence[int], multiple: int, cp_rank: int = 0, cp_size: int = 1) -> Packed:
    """Packs sequences of `lengths` tokens; `multiple` is one of 2 * cp_size where cp_size is above 1."""
    positions = [zig_zag(length, cp_rank, cp_size) for length in padded(lengths, multiple)]
    rows = np.repeat(np.arange(len(positions)), [len(one) for one in positions])
    return Packed(rows, np.concatenate(positions))


def zig_zag(length: int, rank: int, ranks: int) -> np.ndarray:
    """The positions of a sequence on a context-parallel rank, in its order."""
    if ranks == 1:
        return np.arange(length)
    chunks = np.arange(length).reshape(2 * ranks, -1)
    return np.concatenate([chunks[rank], chunks[2 * ranks - 1 - rank]])
