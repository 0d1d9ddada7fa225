"""Latent attention (MLA) of packed sequences, and what it is without Transformer Engine: with whole down-projections.

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

from verst.runtime.trainer.model.packed_sequences import PackedPositions


class PackedLatentAttention(MLASelfAttention):
    """`MLASelfAttention` whose rotary positions begin anew in each packed sequence."""

    rotary_pos_emb: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rotary_pos_emb = PackedPositions(self.rotary_pos_emb)

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        position_ids: Tensor | None = None,
        packed_seq_params: Any = None,
        **others: Any,
    ) -> Any:
        """As Megatron's, which would take any packed sequences for "thd" ones and drop a dimension."""
        self.rotary_pos_emb.packed = packed_seq_params
        return super().get_query_key_value_tensors(
            hidden_states, key_value_states, position_ids, None, **others
        )


class LatentAttention(PackedLatentAttention):
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
