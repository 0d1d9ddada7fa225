"""Checksums of tensors: XXH3 with 128 bits over their bytes, which is as fast as memory and finds any accident.

It does not stop an attacker, who could write the checksum too; who may write a weight folder is the file
system's business.
"""

from __future__ import annotations

import torch
import xxhash


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; without a copy when it is contiguous and on the CPU."""
    return memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())


class Checksum:
    """The checksum of bytes that come piece by piece."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: memoryview) -> None:
        """Takes the next bytes."""
        self._state.update(data)

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return self._state.hexdigest()


def checksum(tensor: torch.Tensor) -> str:
    """32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(tensor_bytes(tensor))
