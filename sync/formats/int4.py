"""INT4 in groups along the columns, in compressed-tensors' packing ("pack-quantized", symmetric, W4A16).

    weight_scale  = amax of the group / 7, in bfloat16; 1 for a group of zeros
    weight_packed = round(x / weight_scale) in -7..7, plus 8, eight in an int32, the first column in the lowest bits
    weight_shape  = [rows, columns] of the whole tensor

Training with simulated INT4 uses the same grid -7..7 (max|w| / 7), so weights trained on it convert without loss.
compressed-tensors' own observers divide by 7.5 and also use -8. Engines read both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verst.sync.formats.format import Format, Output
from verst.sync.formats.rounding import (
    SMALLEST_NORMAL,
    divide,
    finite,
    groups,
    pack_nibbles,
    unpack_nibbles,
)

_MAX = 7.0
_OFFSET = 8


class Int4(Format):
    """Four-bit integers with a bfloat16 scale per group."""

    name = "int4"
    covers = "experts"
    ignore_style = "suffix"

    def __init__(self, group: int = 128) -> None:
        if group not in (32, 64, 128):
            raise ValueError(
                f"an INT4 group must have 32, 64 or 128 columns, not {group}: kernels have no other sizes"
            )
        self.group = group
        self.outputs = (
            Output("weight_packed", torch.int32, (1, 8)),
            Output("weight_scale", torch.bfloat16, (1, group)),
            Output("weight_shape", torch.int64, None, (2,)),
        )

    def check(self, name: str, shape: Sequence[int]) -> None:
        """See Format. The columns must be a multiple of the group size."""
        super().check(name, shape)
        groups(name, torch.empty(shape, device="meta"), self.group, self.name)

    def tensors(
        self,
        name: str,
        block: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        amax: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """See Format."""
        grouped = groups(name, block, self.group, self.name)
        largest = grouped.abs().amax(dim=2).float()
        finite(name, largest)
        scale = (
            divide(largest, _MAX).clamp(min=SMALLEST_NORMAL).masked_fill(largest == 0, 1.0).to(torch.bfloat16)
        )
        steps = (grouped.float() / scale.float()[:, :, None]).round().clamp(-_MAX, _MAX) + _OFFSET
        # Four bytes of two codes each are read as one int32. That is right on little-endian machines, and all machines
        # with GPUs are little-endian.
        packed = pack_nibbles(steps.to(torch.uint8).view(block.shape)).view(torch.int32)
        return {
            self.name_of(name, "weight_packed"): packed,
            self.name_of(name, "weight_scale"): scale,
            self.name_of(name, "weight_shape"): torch.tensor(
                shape or tuple(block.shape), device=block.device
            ),
        }

    def restore(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(code - 8) × scale, rounded to bfloat16."""
        codes = unpack_nibbles(parts["weight_packed"].contiguous().view(torch.uint8))
        scale = parts["weight_scale"].float()
        values = (codes.float() - _OFFSET).view(*scale.shape, self.group) * scale[:, :, None]
        return values.view(codes.shape).to(torch.bfloat16)

    def config(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` with compressed-tensors' keys."""
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": self.group,
            "dynamic": False,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": weights,
                    "input_activations": None,
                    "output_activations": None,
                }
            },
            "ignore": list(ignore),
        }
