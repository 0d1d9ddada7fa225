"""Checksums of tensors: 128-bit XXH3 over their bytes. It is as fast as memory and detects any accidental change.

It does not protect against an attacker, who could write the checksum too. The file system's permissions decide who
can write to a weight folder.
"""

from __future__ import annotations

import torch
import xxhash


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy if it is contiguous and on the CPU."""
    return memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())


class Checksum:
    """Computes the checksum of bytes that come piece by piece."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: memoryview) -> None:
        """Adds the next bytes."""
        self._state.update(data)

    def hexdigest(self) -> str:
        """The checksum so far, as 32 hexadecimal digits."""
        return self._state.hexdigest()


def checksum(tensor: torch.Tensor) -> str:
    """The checksum of a tensor, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(tensor_bytes(tensor))
