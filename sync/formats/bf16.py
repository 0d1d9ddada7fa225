"""BF16: the tensor itself, rounded to bfloat16 if its dtype is wider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from verst.sync.formats.format import Format, Output


class Bf16(Format):
    """Every matrix in bfloat16; nothing is quantised."""

    name = "bf16"

    def __init__(self) -> None:
        self.outputs = (Output("weight", torch.bfloat16, (1, 1)),)

    def tensors(
        self,
        name: str,
        block: torch.Tensor,
        *,
        shape: tuple[int, int] | None = None,
        amax: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """See Format. Infinities and NaNs are allowed, because no scale is computed from them."""
        return {name: block.to(torch.bfloat16).contiguous()}

    def restore(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The weight."""
        return parts["weight"].to(torch.bfloat16)

    def config(self, ignore: Sequence[str]) -> None:
        """None, because config.json has no `quantization_config` for BF16."""
        return None
