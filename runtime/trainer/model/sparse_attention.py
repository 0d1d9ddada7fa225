"""DeepSeek's sparse attention (DSA) from Megatron's experiment, on CPUs too, with a choice that can be replayed.

In each layer an indexer scores all earlier tokens for each token, and attention goes to the K best alone
(DeepSeek-V3.2-Exp, section 2.1); in GLM-5.2 some layers have none and share the choice of one before them
(`share_choices`). Engine and trainer score with different kernels, so what is near the K-th place differs, as with
experts. `SparseAttention` asks its `selection` for the tokens.
Indexers are not trained: gradients do not pass through a choice, and Megatron's loss for them wants other data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.experimental_attention_variant import dsa
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

from verst.runtime.trainer.model.latent_attention import WholeLinear
from verst.runtime.trainer.model.replayed_selection import ReplayedSelection


class SparseAttention(DSAttention):
    """`DSAttention` that attends to the tokens that its `selection` names, where it names some."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.dsa_indexer_loss_coeff:
            raise ValueError("dsa-indexer-loss-coeff is set, but indexers are not trained here: leave it out")
        self.shares = self.skip_topk  # has no indexer: attends to what `source_layer` chose
        self.selection = ReplayedSelection(recomputes=config.recompute_granularity is not None)
        # Where Megatron's layers look for a shared choice and leave theirs. Theirs travels with the micro-batch, and
        # nothing is left of it when a layer is recomputed.
        self._holder: dict[int, Tensor] = {}
        self._only_chooses = False

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Megatron's. A layer that is told where to attend does not run its indexer."""
        told = self.selection.begin()
        if told is not None and self.indexer is not None and self.selection.compares:
            self.selection.compare(self._own_choice(*args, **kwargs))
        wanted = self.selection.wants_choice
        output = self._run(told, told is not None or wanted, *args, **kwargs)
        self.selection.attended(None)  # if it has not been: what was told is wrong
        if told is None and wanted:
            self.selection.chosen(self._holder[self.layer_number])
        self._holder = {}
        return output

    def _run(self, told: Tensor | None, shares: bool, *args: Any, **kwargs: Any) -> Tensor:
        """Megatron's layer, told where to attend or choosing; if it `shares`, `_holder` has its choice then. One that
        shares has its indexer and its attention apart, without the kernel that does both."""
        self.index_share, self.skip_topk = shares, told is not None
        self._holder = {} if told is None else {self.source_layer: told}
        # Megatron has no hook where the choice that it has come to is used.
        theirs = dsa._run_sparse_attention
        dsa._run_sparse_attention = partial(self._attend, theirs)
        try:
            return super().forward(*args, **kwargs)
        finally:
            dsa._run_sparse_attention = theirs

    @torch.no_grad()
    def _own_choice(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the indexer would choose in this call, int64 [b, s, up to K]."""
        self._only_chooses = True
        try:
            self._run(None, True, *args, **kwargs)
        finally:
            self._only_chooses = False
        return self._holder[self.layer_number]

    def _attend(self, attention: Callable[..., Tensor], *, query: Tensor, **others: Any) -> Tensor:
        """Stands where Megatron computes attention [s, b, ...] with the choice that it has come to."""
        if self._only_chooses:
            return query[..., :1]  # stands in for what nobody reads
        self.selection.attended(others["topk_indices"])
        return attention(query=query, **others)

    def _get_index_share_topk_holder(self, *unused: Any) -> dict[int, Tensor]:
        return self._holder

    def _get_index_share_topk_length_holder(self, *unused: Any) -> dict[int, Tensor]:
        return {}


def share_choices(chunk: torch.nn.Module) -> None:
    """Ties the layers of a model chunk that share a choice to those that make it. Raises ValueError where that is in
    another chunk."""
    layers = {m.layer_number: m for m in chunk.modules() if isinstance(m, SparseAttention)}
    for number, layer in layers.items():
        if not layer.shares:
            continue
        if layer.source_layer not in layers:
            raise ValueError(
                f"layer {number} (from 1) shares the choice of layer {layer.source_layer}, which is in another "
                "pipeline stage or model chunk; each must begin with a layer that chooses"
            )
        layer.selection.follow(layers[layer.source_layer].selection)


def forget_choices(chunks: Sequence[torch.nn.Module]) -> None:
    """A pass over the micro-batches is over: what its layers were given, chose or shared is not needed any more."""
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, SparseAttention):
                module.selection.forget()


def choosing_layers(config: TransformerConfig) -> list[int]:
    """Megatron's numbers (from 1) of the layers that have an indexer, ascending."""
    frequency, offset = config.dsa_indexer_topk_freq, config.dsa_indexer_skip_topk_offset
    numbers = range(1, config.num_layers + 1)
    return [n for n in numbers if not dsa.is_dsa_skip_topk_layer(n, offset, frequency)]


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
