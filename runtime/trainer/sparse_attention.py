"""DeepSeek's sparse attention (DSA) from Megatron's experiment, on CPUs too, with a choice that can be replayed.

In each layer an indexer scores all earlier tokens for each token, and attention goes to the K best alone
(DeepSeek-V3.2-Exp, section 2.1). Engine and trainer score with different kernels, so what is near the K-th place
differs, as with experts. `SparseAttention` asks its `selection` for the tokens; nothing is shared with other layers.
Indexers are not trained: gradients do not pass through a choice, and Megatron's loss for them wants other data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.experimental_attention_variant.absorbed_mla import (
    AbsorbedMLASelfAttention,
    AbsorbedMLASelfAttentionSubmodules,
)
from megatron.core.transformer.experimental_attention_variant.dsa import (
    DSAIndexer,
    DSAIndexerSubmodules,
    DSAttention,
    DSAttentionSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.latent_attention import WholeLinear
from verst.runtime.trainer.replayed_selection import ReplayedSelection


class SparseAttention(DSAttention):
    """`DSAttention` that attends to the tokens that its `selection` names, where it names some."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if self.index_share:
            raise ValueError(
                f"dsa-indexer-topk-freq is {self.index_topk_freq}: here each layer has a choice of its own; set it to 1"
            )
        if config.dsa_indexer_loss_coeff:
            raise ValueError("dsa-indexer-loss-coeff is set, but indexers are not trained here: leave it out")
        self.selection: ReplayedSelection | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Megatron's. A layer that "shares" its choice takes the one that is there, and runs no indexer."""
        if self.selection is None:
            return super().forward(*args, **kwargs)
        given = self.selection.begin()
        self.index_share, self.skip_topk = True, given is not None
        self._holder = {} if given is None else {self.source_layer: given}
        try:
            output = super().forward(*args, **kwargs)
            if given is None:
                self.selection.chosen(self._holder[self.layer_number])
            return output
        finally:
            self.index_share = self.skip_topk = False
            del self._holder

    def _get_index_share_topk_holder(self, *unused: Any) -> dict[int, Tensor]:
        return self._holder

    def _get_index_share_topk_length_holder(self, *unused: Any) -> dict[int, Tensor]:
        return {}


class SparseLatentAttention(AbsorbedMLASelfAttention):
    """`AbsorbedMLASelfAttention` of local modules, its down-projections whole on every rank (`latent_attention.py`)."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.linear_q_down_proj = WholeLinear(config, config.q_lora_rank)
        self.linear_kv_down_proj = WholeLinear(config, config.kv_lora_rank + config.qk_pos_emb_head_dim)


class IndexerLinear(torch.nn.Module):
    """A linear layer of the indexer: whole on every rank, on all tokens. Its weight is a buffer: it is not trained."""

    def __init__(self, in_size: int, out_size: int, *, config: TransformerConfig, **unused: Any) -> None:
        super().__init__()
        shape, device = (out_size, in_size), torch.cuda.current_device()
        self.register_buffer("weight", torch.empty(shape, dtype=config.params_dtype, device=device))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[..., in] -> [..., out], and no bias."""
        return torch.nn.functional.linear(x, self.get_buffer("weight")), None


class IndexerNorm(torch.nn.Module):
    """LayerNorm of the indexer's keys."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias"):
            empty = torch.empty(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
            self.register_buffer(name, empty)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same shape and dtype."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


def sparse_attention(norm: Callable[..., torch.nn.Module]) -> ModuleSpec:
    """Latent attention with an indexer, of local modules."""
    indexer = DSAIndexerSubmodules(
        linear_wq_b=IndexerLinear,
        linear_wk=IndexerLinear,
        k_norm=IndexerNorm,
        linear_weights_proj=IndexerLinear,
    )
    core = ModuleSpec(
        module=SparseAttention,
        submodules=DSAttentionSubmodules(indexer=ModuleSpec(module=DSAIndexer, submodules=indexer)),
    )
    return ModuleSpec(
        module=SparseLatentAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=AbsorbedMLASelfAttentionSubmodules(
            linear_q_proj=ColumnParallelLinear,
            linear_q_down_proj=ColumnParallelLinear,
            linear_q_up_proj=ColumnParallelLinear,
            linear_kv_down_proj=ColumnParallelLinear,
            linear_kv_up_proj=ColumnParallelLinear,
            core_attention=core,
            linear_proj=RowParallelLinear,
            q_layernorm=norm,
            kv_layernorm=norm,
        ),
    )
