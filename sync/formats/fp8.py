"""FP8 in blocks, the format of DeepSeek-V3's checkpoints: e4m3 weights, one float32 scale per 128×128 block.

    weight           = round(x / scale)
    weight_scale_inv = scale (despite the name: the weight is multiplied by it)
    scale            = amax of the block / 448

The last block of a dimension may be partial. A block of zeros has scale 1. With `ue8m0` the scale is the smallest power
of two that is not below this value, still stored in float32 (`"scale_fmt": "ue8m0"`, DeepSeek-V3.1), as Blackwell's
DeepGEMM kernels need it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from verst.sync.formats.format import Format, Output
from verst.sync.formats.rounding import (
    E4M3_MAX,
    SMALLEST_NORMAL,
    ceil_exponent,
    divide,
    finite,
    power_of_two,
    to_e4m3,
)


class Fp8(Format):
    """e4m3 weights with one scale per block of `block` = (rows, columns)."""

    name = "fp8"

    def __init__(self, block: tuple[int, int] = (128, 128), ue8m0: bool = False) -> None:
        if min(block) < 1:
            raise ValueError(f"an FP8 block must have at least 1×1 elements, not {block[0]}×{block[1]}")
        self.block, self.ue8m0 = block, ue8m0
        self.outputs = (
            Output("weight", torch.float8_e4m3fn, (1, 1)),
            Output("weight_scale_inv", torch.float32, block),
        )

    def tensors(
        self,
        name: str,
        block: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        amax: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """See Format."""
        rows, columns = block.shape
        height, width = self.block
        down, across = math.ceil(rows / height), math.ceil(columns / width)
        whole = pad(block, (0, across * width - columns, 0, down * height - rows))
        tiles = whole.view(down, height, across, width)
        largest = tiles.abs().amax(dim=(1, 3)).float()
        finite(name, largest)
        scale = self._scale(largest)
        codes = to_e4m3(tiles.float() / scale[:, None, :, None])
        weight = codes.view(down * height, across * width)[:rows, :columns].contiguous()
        return {name: weight, self.name_of(name, "weight_scale_inv"): scale}

    def _scale(self, largest: torch.Tensor) -> torch.Tensor:
        scale = divide(largest, E4M3_MAX)
        scale = power_of_two(ceil_exponent(scale)) if self.ue8m0 else scale.clamp(min=SMALLEST_NORMAL)
        return scale.masked_fill(largest == 0, 1.0)

    def restore(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """weight × scale, rounded to bfloat16."""
        weight, scale = parts["weight"], parts["weight_scale_inv"]
        rows, columns = weight.shape
        spread = scale.float().repeat_interleave(self.block[0], 0)[:rows]
        spread = spread.repeat_interleave(self.block[1], 1)[:, :columns]
        return (weight.float() * spread).to(torch.bfloat16)

    def config(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` with DeepSeek's keys."""
        config: dict[str, Any] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(self.block),
        }
        if self.ue8m0:
            config["scale_fmt"] = "ue8m0"
        return config | {"modules_to_not_convert": list(ignore)}
