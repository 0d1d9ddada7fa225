"""A checksum per segment of a bucket, one pass over its bytes, the same on CPU and GPU, bit for bit.

A row of 4096 bytes gives one number: the sum of its 1,024 words, each times an odd weight of its place. A
segment's checksum adds its rows, each times its number within the segment; all in 64-bit integers that wrap.
It catches what goes wrong in transport: bytes that are missing, old, changed or in another place. It is no
cryptographic hash: the connections' own security is another matter.
"""

from __future__ import annotations

import torch

from verst.sync.layout.plan import ALIGN

_WORDS = ALIGN // 4
_STEP = 0x9E3779B1  # odd; neighbouring words get weights that differ in many bits
_CHUNK_ROWS = 64  # without a GPU; the products of more leave the cache, and it takes five times as long


def segment_checksums(slot: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """int64 [segments] of a bucket: `slot` is uint8 [n * ALIGN], `rows` int64 [segments, 2], first and end row."""
    sums = _row_sums(slot.view(torch.int32).view(-1, _WORDS))
    place = torch.arange(len(sums), device=sums.device)
    plain = _prefix(sums)
    weighted = _prefix(sums * place)
    begin, end = rows.unbind(1)
    total = plain[end] - plain[begin]
    # Each row times (its number within the segment + 1), from two running sums over the whole slot.
    return weighted[end] - weighted[begin] - (begin - 1) * total


def _prefix(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _weights(device: torch.device) -> torch.Tensor:
    return (torch.arange(_WORDS, dtype=torch.int64, device=device) * _STEP) & 0xFFFFFFFF | 1


def _row_sums(words: torch.Tensor) -> torch.Tensor:
    """int64 [rows] of int32 [rows, 1024]."""
    weights = _weights(words.device)
    if words.is_cuda:
        from verst.sync.wire.checksum_triton import row_sums  # a GPU's torch brings triton

        return row_sums(words, weights)
    parts = [(part.to(torch.int64) * weights).sum(1) for part in words.split(_CHUNK_ROWS)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
