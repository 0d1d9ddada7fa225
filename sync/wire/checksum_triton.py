"""The row sums of `checksum.py` on a GPU: a kernel that reads the bucket once and needs no temporary memory."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def _row_sums(words, sums, weights, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WORDS)
    values = tl.load(words + row * WORDS + column).to(tl.int64)
    tl.store(sums + row, tl.sum(values * tl.load(weights + column), 0))


def row_sums(words: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each row: int64 [rows] from words int32 [rows, n] and weights int64 [n], n a power of 2."""
    sums = torch.empty(len(words), dtype=torch.int64, device=words.device)
    if len(words):
        _row_sums[(len(words),)](words, sums, weights, WORDS=words.shape[1])
    return sums
