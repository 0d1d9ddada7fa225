"""Core attention of packed sequences: by Transformer Engine, and by torch where that has no kernel.

Megatron's local core attention writes the [b, heads, s, s] scores in fp32, and refuses context parallelism and packed
sequences. Torch's flash kernels are used here, on CPUs and GPUs. Each sequence is padded on the right and attention is
causal, so no padding mask is needed: no token attends to the padding behind it.

Context parallelism without Transformer Engine all-gathers keys and values (as in Llama 3, arXiv:2407.21783, section
3.3.2). Tokens are split as `share/packing.py` says, which is Transformer Engine's split, too.
"""

from __future__ import annotations

import math
import os
from typing import Any
from unittest import mock

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from verst.runtime.trainer.model.packed_sequences import PackedSequences, Seen


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
        """Query [t, 1, heads, d], key [t, 1, groups, d], value [t, 1, groups, dv] -> [t, 1, heads * dv].

        t are this rank's tokens of the micro-batch's sequences, which `packed_seq_params` describes.
        """
        packed = _packed(packed_seq_params, attention_bias)
        query, key, value = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        seen = None
        if self.cp_group is not None:
            # Every rank's keys and values, rank after rank.
            key, value = (
                gather_from_sequence_parallel_region(one.contiguous(), group=self.cp_group)
                for one in (key, value)
            )
            seen = packed.seen(self.cp_group.rank(), self.cp_group.size())
            key, value = key.index_select(0, seen.gathered), value.index_select(0, seen.gathered)
        longest = max(seen.queries) if seen else packed.longest
        attend = _by_varlen_kernel if _has_varlen_kernel(query, longest) else _by_rectangles
        context = attend(query, key, value, packed, seen, self.softmax_scale)
        return context.flatten(1).unsqueeze(1)


def _packed(given: Any, attention_bias: Tensor | None) -> PackedSequences:
    if not isinstance(given, PackedSequences) or attention_bias is not None:
        raise ValueError("attention takes the PackedSequences of its micro-batch, and no bias")
    return given


def _has_varlen_kernel(query: Tensor, longest: int) -> bool:
    """Whether torch has a flash kernel for sequences of different lengths in one row.

    Where none has more than one query it has another form, for generation, without a backward pass.
    """
    width = query.shape[-1]
    fits = query.dtype in (torch.bfloat16, torch.float16) and width <= 256 and width % 8 == 0
    return query.is_cuda and fits and longest > 1


def _by_varlen_kernel(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences, seen: Seen | None, scale: float
) -> Tensor:
    """Torch's flash kernel for [tokens, heads, d]; values must be as wide as keys, so they are padded."""
    query_ends, key_ends = (seen.query_ends, seen.key_ends) if seen else (packed.ends, packed.ends)
    longest = (max(seen.queries), max(seen.keys)) if seen else (packed.longest, packed.longest)
    width = value.shape[-1]
    out = varlen_attn(
        query,
        key,
        _as_wide_as(query, value),
        query_ends,
        key_ends,
        *longest,
        scale=scale,
        window_size=(-1, 0),  # causal; the last query of each sequence is at its last key
    )
    assert isinstance(out, Tensor)
    return out[..., :width]


def _as_wide_as(query: Tensor, value: Tensor) -> Tensor:
    """The values with columns of zeros, as wide as queries."""
    missing = query.shape[-1] - value.shape[-1]
    return pad(value, (0, missing)) if missing else value


def _by_rectangles(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedSequences, seen: Seen | None, scale: float
) -> Tensor:
    """Torch's attention over rectangles: sequences of similar length together, or chunk after chunk of `seen`."""
    if seen is None:
        groups, places = packed.alike
        parts = [_attend(query[one], key[one], value[one], None, scale) for one in groups]
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, places)
    chunks = zip(query.split(seen.queries), key.split(seen.keys), value.split(seen.keys), strict=True)
    parts = []
    for queries, keys, values in chunks:
        mask = _lower_right(len(queries), len(keys), query.device) if len(keys) > len(queries) else None
        parts.append(_attend(queries[None], keys[None], values[None], mask, scale)[0])
    return torch.cat(parts)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """[sequences, tokens, heads, d], causal unless there is a mask -> the same shape, as wide as `value`."""
    out = scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=key.shape[2] != query.shape[2],
    )
    return out.transpose(1, 2)


def can_attend(config: TransformerConfig) -> bool:
    """Whether `FlashCoreAttention` can compute this model's attention."""
    return config.window_size is None and config.softmax_type == "vanilla" and not config.attention_dropout


def packed_transformer_engine() -> type[torch.nn.Module]:
    """Megatron's module for Transformer Engine's attention, for packed sequences."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class PackedTEAttention(TEDotProductAttention):
        """`TEDotProductAttention` that takes and returns what `FlashCoreAttention` does."""

        def __init__(
            self, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **kwargs: Any
        ) -> None:
            # Kernels for packed sequences take values as wide as keys.
            super().__init__(*args, k_channels=k_channels, v_channels=k_channels, **kwargs)

        def forward(
            self,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            attn_mask_type: AttnMaskType,
            attention_bias: Tensor | None = None,
            packed_seq_params: Any = None,
            num_splits: int | None = None,
        ) -> Tensor:
            packed = _packed(packed_seq_params, attention_bias)
            wide, width = query.shape[-1], value.shape[-1]
            query, key, value = (
                one.squeeze(1).contiguous() for one in (query, key, _as_wide_as(query, value))
            )
            thd = PackedSeqParams(
                qkv_format="thd",
                cu_seqlens_q=packed.ends,
                cu_seqlens_kv=packed.ends,
                # The same tensors once more say that nothing lies between sequences.
                cu_seqlens_q_padded=packed.ends,
                cu_seqlens_kv_padded=packed.ends,
                max_seqlen_q=packed.longest,
                max_seqlen_kv=packed.longest,
            )
            out = super().forward(
                query, key, value, None, attn_mask_type, packed_seq_params=thd, num_splits=num_splits
            )
            return out.view(len(query), 1, -1, wide)[..., :width].flatten(2)

    return PackedTEAttention


def transformer_engine_attends(config: TransformerConfig) -> bool:
    """Whether Transformer Engine has a fused kernel for this model's packed sequences on this GPU: cuDNN's or one of
    flash-attn's.

    Without one it silently writes all scores [b, heads, s, s], and it refuses context parallelism (2.20 on an
    H200: 17,400 tokens/s at 8192 tokens, where torch's flash kernel reaches 30,000). Only a trial run tells
    which kernel it picks.
    """
    from transformer_engine.pytorch import DotProductAttention

    tp = config.tensor_model_parallel_size
    heads, groups = config.num_attention_heads // tp, (config.num_query_groups or 0) // tp
    width = _head_size(config)
    attention = DotProductAttention(
        heads,
        width,
        num_gqa_groups=groups or heads,
        attention_dropout=0.0,
        attn_mask_type="padding_causal",
        qkv_format="thd",
    )
    query, key, value = (
        torch.zeros(64, n, width, dtype=config.params_dtype, device="cuda", requires_grad=True)
        for n in (heads, groups or heads, groups or heads)
    )
    ends = torch.tensor([0, 16, 64], dtype=torch.int32, device="cuda")
    try:
        with mock.patch.dict(os.environ, {"NVTE_UNFUSED_ATTN": "0"}):
            attention(
                query, key, value, cu_seqlens_q=ends, cu_seqlens_kv=ends, max_seqlen_q=48, max_seqlen_kv=48
            )
    except ValueError:  # "No dot product attention backend is available"
        return False
    return True


def _head_size(config: TransformerConfig) -> int:
    """Width of a query and key head."""
    if isinstance(config, MLATransformerConfig):
        return config.qk_head_dim + config.qk_pos_emb_head_dim
    return config.kv_channels


def _lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """Causal mask bool [queries, keys] of the last `queries` among `keys` positions."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
