"""NVFP4, the format of ModelOpt's checkpoints: E2M1 weights, an e4m3 scale per 1×16, a float32 scale per tensor.

    weight_scale_2 = amax of the tensor and of all that the engine fuses with it / (6 · 448)
    weight_scale   = amax of the group / (6 · weight_scale_2), in e4m3; at least e4m3's smallest value, 2^-9;
                     1 for a group of zeros
    weight         = round(x / (weight_scale · weight_scale_2)), two codes in a byte, the even column in the low half
    input_scale    = 1. The layer's activations are divided by it before they get scales of their own: groups with an
                     amax between 0.01 and 2688 fit. Kernels that keep activations in bf16 do not use it

The engine keeps only the largest `weight_scale_2` of fused tensors (query, key and value; gate and up), so these share
one amax (`amax_group`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from verst.sync.formats.format import Format, Output
from verst.sync.formats.rounding import (
    E2M1_MAX,
    E4M3_MAX,
    SMALLEST_NORMAL,
    divide,
    e2m1_codes,
    e2m1_values,
    finite,
    groups,
    pack_nibbles,
    to_e4m3,
    unpack_nibbles,
)
from verst.sync.formats.selection import fused_group

GROUP = 16
_SMALLEST_E4M3 = 2.0**-9


class Nvfp4(Format):
    """E2M1 weights with two levels of scales."""

    name = "nvfp4"
    two_phase = True
    covers = "experts"

    def __init__(self) -> None:
        self.outputs = (
            Output("weight", torch.uint8, (1, 2)),
            Output("weight_scale", torch.float8_e4m3fn, (1, GROUP)),
            Output("weight_scale_2", torch.float32),
            Output("input_scale", torch.float32),
        )

    def check(self, name: str, shape: Sequence[int]) -> None:
        """See Format. The columns must be a multiple of the group size."""
        super().check(name, shape)
        groups(name, torch.empty(shape, device="meta"), GROUP, self.name)

    def amax_group(self, name: str) -> str:
        """See Format. Query, key and value are one group, gate and up another."""
        return fused_group(name)

    def tensors(
        self,
        name: str,
        block: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        amax: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """See Format. Raises ValueError if the block holds a larger value than the given `amax`."""
        grouped = groups(name, block, GROUP, self.name)
        largest = grouped.abs().amax(dim=2).float()
        finite(name, largest)
        over_all = self.amax(block) if amax is None else amax.to(block.device, torch.float32)
        if block.numel() and bool(largest.max() > over_all):
            raise ValueError(
                f"{name}: the block's largest value is {largest.max()}, beyond the amax given, {over_all}"
            )
        outer = (
            divide(over_all, E2M1_MAX * E4M3_MAX).clamp(min=SMALLEST_NORMAL).masked_fill(over_all == 0, 1.0)
        )
        scale = to_e4m3(
            (largest / (outer * E2M1_MAX)).clamp(min=_SMALLEST_E4M3).masked_fill(largest == 0, 1.0)
        )
        codes = e2m1_codes(grouped.float() / (scale.float() * outer)[:, :, None])
        return {
            name: pack_nibbles(codes.view(block.shape)),
            self.name_of(name, "weight_scale"): scale,
            self.name_of(name, "weight_scale_2"): outer,
            self.name_of(name, "input_scale"): torch.ones_like(outer),
        }

    def restore(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """code × weight_scale × weight_scale_2, rounded to bfloat16."""
        values = e2m1_values(unpack_nibbles(parts["weight"]))
        scale = parts["weight_scale"].float() * parts["weight_scale_2"]
        return (values.view(*scale.shape, GROUP) * scale[:, :, None]).view(values.shape).to(torch.bfloat16)

    def config(self, ignore: Sequence[str]) -> dict[str, Any]:
        """The `quantization_config` with ModelOpt's keys in their flat form."""
        kind = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": GROUP}
        return {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "group_size": GROUP,
            "config_groups": {"group_0": {"input_activations": kind, "weights": kind, "targets": ["Linear"]}},
            "ignore": list(ignore),
        }
