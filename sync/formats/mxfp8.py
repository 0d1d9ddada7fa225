"""MXFP8: e4m3 weights with one power of two per row and 32 columns, stored as its exponent in a byte (E8M0, bias 127).

The scale is the smallest power of two that is not below amax / 448, so that nothing overflows. NVIDIA, torchao (RCEIL)
and SGLang round in the same way; the OCP paper rounds down, which can clip up to an eighth off the largest value. A
group of zeros has byte 0. SGLang reads the byte under the name `weight_scale_inv`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verst.sync.formats.format import Format, Output
from verst.sync.formats.rounding import (
    E4M3_MAX,
    ceil_exponent,
    divide,
    finite,
    groups,
    power_of_two,
    to_e4m3,
)

GROUP = 32


class Mxfp8(Format):
    """e4m3 weights with one power of two per 1×32 block."""

    name = "mxfp8"

    def __init__(self) -> None:
        self.outputs = (
            Output("weight", torch.float8_e4m3fn, (1, 1)),
            Output("weight_scale_inv", torch.uint8, (1, GROUP)),
        )

    def check(self, name: str, shape: Sequence[int]) -> None:
        """See Format. The columns must be a multiple of the group size."""
        super().check(name, shape)
        groups(name, torch.empty(shape, device="meta"), GROUP, self.name)

    def tensors(
        self,
        name: str,
        block: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        amax: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """See Format."""
        grouped = groups(name, block, GROUP, self.name)
        largest = grouped.abs().amax(dim=2).float()
        finite(name, largest)
        exponent = ceil_exponent(divide(largest, E4M3_MAX))
        codes = to_e4m3(grouped.float() / power_of_two(exponent)[:, :, None])
        scale = exponent.masked_fill(largest == 0, 0).to(torch.uint8)
        return {name: codes.view(block.shape), self.name_of(name, "weight_scale_inv"): scale}

    def restore(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """weight × 2^(byte - 127), rounded to bfloat16. Byte 0 only occurs with zeros."""
        weight = parts["weight"]
        scale = power_of_two(parts["weight_scale_inv"].clamp(min=1))
        return (
            (weight.float().view(*scale.shape, GROUP) * scale[:, :, None])
            .view(weight.shape)
            .to(torch.bfloat16)
        )

    def config(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` with the keys of SGLang's Fp8Config."""
        return {
            "quant_method": "mxfp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [1, GROUP],
            "scale_fmt": "ue8m0",
            "modules_to_not_convert": list(ignore),
        }
