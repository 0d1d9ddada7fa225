"""Computes a checksum for each segment of a bucket, in one pass over its bytes and bit-identical on CPU and GPU.

A row of 4,096 bytes gives one number: the sum of its 1,024 words, each multiplied by an odd weight that depends on
its place. A segment's checksum is the sum of its rows, each multiplied by its number within the segment. All numbers
are 64-bit integers that wrap. This detects transport errors: bytes that are missing, old, changed or in the wrong
place. It is not a cryptographic hash and does not protect against attackers.
"""

from __future__ import annotations

import torch

from verst.sync.layout.plan import ALIGN

_WORDS = ALIGN // 4
_STEP = 0x9E3779B1  # odd; neighbouring words get weights that differ in many bits
_CHUNK_ROWS = 64  # on a CPU; the products of more rows do not fit the cache, which makes it five times slower


def segment_checksums(slot: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The checksums of a bucket's segments, int64 [segments].

    `slot` is uint8 [n * ALIGN]. `rows` is int64 [segments, 2]: each segment's first row and the row after its last.
    """
    sums = _row_sums(slot.view(torch.int32).view(-1, _WORDS))
    place = torch.arange(len(sums), device=sums.device)
    plain = _prefix(sums)
    weighted = _prefix(sums * place)
    begin, end = rows.unbind(1)
    total = plain[end] - plain[begin]
    # The sum of each row times (its number within the segment + 1), from two running sums over the whole slot.
    return weighted[end] - weighted[begin] - (begin - 1) * total


def _prefix(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


def _weights(device: torch.device) -> torch.Tensor:
    return (torch.arange(_WORDS, dtype=torch.int64, device=device) * _STEP) & 0xFFFFFFFF | 1


def _row_sums(words: torch.Tensor) -> torch.Tensor:
    """The weighted sum of each row: int64 [rows] from int32 [rows, 1024]."""
    weights = _weights(words.device)
    if words.is_cuda:
        from verst.sync.wire.checksum_triton import row_sums  # triton is installed with torch for GPUs only

        return row_sums(words, weights)
    parts = [(part.to(torch.int64) * weights).sum(1) for part in words.split(_CHUNK_ROWS)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
