"""Latent attention (MLA) without Transformer Engine: Megatron's, with whole down-projections on every rank.

Megatron's local layers split the down-projections over tensor-parallel ranks, while Transformer Engine's keep
them whole. Two layouts of one model would need two mapping tables. Besides, the split layout gathers the
rotary key without summing its gradient over the ranks' heads.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor


class LatentAttention(MLASelfAttention):
    """`MLASelfAttention` from local modules, with whole down-projections."""

    def __init__(self, config: MLATransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # Megatron's spec accepts no other class, so the modules are replaced afterwards.
        self.linear_q_down_proj = WholeLinear(config, config.q_lora_rank)
        self.linear_kv_down_proj = WholeLinear(config, config.kv_lora_rank + config.qk_pos_emb_head_dim)


class WholeLinear(torch.nn.Module):
    """A linear layer that every tensor-parallel rank holds whole, applied to its own tokens."""

    def __init__(self, config: MLATransformerConfig, out_size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.empty(
                out_size, config.hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()
            )
        )
        # Each rank sees a part of the tokens, so its gradient is partial. Megatron sums gradients that are so
        # marked.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[s, b, hidden] -> [s, b, out], and None as bias."""
        return torch.nn.functional.linear(x, self.weight), None
