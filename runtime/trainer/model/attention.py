"""Core attention by torch, where Transformer Engine has none: with grouped heads and context parallelism.

Megatron's local core attention writes the [b, heads, s, s] scores in fp32 and refuses context parallelism.
Torch picks its flash kernel here, on CPUs and GPUs. Sequences are padded on the right and attention is
causal, so no padding mask is needed: no token attends to the padding behind it.

Context parallelism all-gathers keys and values (as in Llama 3, arXiv:2407.21783, section 3.3.2) and uses
Megatron's zig-zag split: rank r of c holds chunks r and 2c-1-r of the 2c chunks of each sequence, so every
rank has the same work.
"""

from __future__ import annotations

import math
import os
from typing import Any
from unittest import mock

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class FlashCoreAttention(torch.nn.Module):
    """Causal attention of this rank's heads, instead of Megatron's `DotProductAttention`."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        cp_comm_type: str | None = None,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        if not can_attend(config):
            raise ValueError(
                "attention without Transformer Engine has no sliding window, no softmax offset and no "
                "dropout: install Transformer Engine, or leave out window-size, softmax-type and attention-dropout"
            )
        if attn_mask_type != AttnMaskType.causal:
            raise ValueError(f"attention without Transformer Engine must be causal, got {attn_mask_type}")
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.cp_group = None
        if config.context_parallel_size > 1:
            pg = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
            self.cp_group = pg.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Query [s, b, heads, d], key [s, b, groups, d], value [s, b, groups, dv] -> [s, b, heads * dv].

        s is this rank's share of the sequence.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ValueError("attention without Transformer Engine takes no packed sequences and no bias")
        if self.cp_group is None:
            context = self._attend(query, key, value, causal=True)
        else:
            context = self._attend_over_shards(query, key, value)
        return context.flatten(2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, mask: Any = None) -> Tensor:
        out = scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            is_causal=causal,
            scale=self.softmax_scale,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return out.permute(2, 0, 1, 3)

    def _attend_over_shards(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert self.cp_group is not None
        ranks, rank = self.cp_group.size(), self.cp_group.rank()
        keys, values = _in_order(key, self.cp_group), _in_order(value, self.cp_group)
        chunk = query.shape[0] // 2
        parts = []
        for part, place in zip(query.split(chunk), (rank, 2 * ranks - 1 - rank), strict=True):
            seen = (place + 1) * chunk
            if place == 0:
                parts.append(self._attend(part, keys[:seen], values[:seen], causal=True))
            else:
                mask = _lower_right(chunk, seen, query.device)
                parts.append(self._attend(part, keys[:seen], values[:seen], causal=False, mask=mask))
        return torch.cat(parts)


def can_attend(config: TransformerConfig) -> bool:
    """Whether `FlashCoreAttention` can compute this model's attention."""
    return config.window_size is None and config.softmax_type == "vanilla" and not config.attention_dropout


def transformer_engine_attends(config: TransformerConfig) -> bool:
    """Whether Transformer Engine has a fused kernel for this model on this GPU: cuDNN's or one of
    flash-attn's.

    Without one it silently writes all scores [b, heads, s, s], and it refuses context parallelism (2.20 on an
    H200: 17,400 tokens/s at 8192 tokens, where torch's flash kernel reaches 30,000). Only a trial run tells
    which kernel it picks.
    """
    from transformer_engine.pytorch import DotProductAttention

    tp = config.tensor_model_parallel_size
    heads, groups = config.num_attention_heads // tp, (config.num_query_groups or 0) // tp
    wide, narrow = _head_sizes(config)
    attention = DotProductAttention(
        heads,
        config.kv_channels if wide == narrow else (wide, narrow),
        num_gqa_groups=groups or heads,
        attention_dropout=0.0,
        attn_mask_type="causal",
        qkv_format="sbhd",
    )
    query, key, value = (
        torch.zeros(64, 1, n, width, dtype=config.params_dtype, device="cuda", requires_grad=True)
        for n, width in ((heads, wide), (groups or heads, wide), (groups or heads, narrow))
    )
    try:
        with mock.patch.dict(os.environ, {"NVTE_UNFUSED_ATTN": "0"}):
            attention(query, key, value)
    except ValueError:  # "No dot product attention backend is available"
        return False
    return True


def _head_sizes(config: TransformerConfig) -> tuple[int, int]:
    """Widths of a query and key head, and of a value head."""
    if isinstance(config, MLATransformerConfig):
        return config.qk_head_dim + config.qk_pos_emb_head_dim, config.v_head_dim
    return config.kv_channels, config.kv_channels


def _in_order(shard: Tensor, group: torch.distributed.ProcessGroup) -> Tensor:
    """Gathers all shards [s/c, ...] of a zig-zag split and puts them in sequence order [s, ...]."""
    gathered = gather_from_sequence_parallel_region(shard.contiguous(), group=group)
    chunks = gathered.chunk(2 * group.size())
    return torch.cat([*chunks[0::2], *chunks[1::2][::-1]])


def _lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """Causal mask bool [queries, keys] of the last `queries` among `keys` positions."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
