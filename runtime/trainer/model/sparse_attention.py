"""DeepSeek's sparse attention (DSA), built on Megatron's experimental one: it also runs on CPUs and replays
choices.

For each token, a layer's indexer scores all earlier tokens, and attention goes to the K best alone
(DeepSeek-V3.2-Exp, section 2.1). In GLM-5.2 some layers have no indexer and share the choice of an earlier
layer (`share_choices`).

Engine and trainer score with different kernels, so they may choose different tokens near the K-th place, as
with experts. Therefore `SparseAttention` asks its `selection` which tokens to attend to.

Sequences are packed (`packed_sequences.py`), and this attention takes them one after another: its kernels compare all
tokens of a row with each other, whatever sequence they are of.

Indexers are not trained: gradients do not pass through a choice, and Megatron's loss for indexers needs other
data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
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
from torch.nn.functional import pad

from verst.runtime.trainer.model.latent_attention import WholeLinear
from verst.runtime.trainer.model.packed_sequences import PackedPositions, PackedSequences
from verst.runtime.trainer.model.replayed_selection import ReplayedSelection


class SparseAttention(DSAttention):
    """`DSAttention` that attends to the tokens given by its `selection`.

    If `selection` gives none, the indexer chooses.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        # Each call below has all tokens of a sequence, also where tensor-parallel ranks split the row of sequences.
        whole = copy.copy(config)
        whole.sequence_parallel = False
        super().__init__(whole, *args, **kwargs)
        if config.dsa_indexer_loss_coeff:
            raise ValueError("dsa-indexer-loss-coeff is set, but Verst does not train indexers: leave it out")
        self._splits_row = config.sequence_parallel and config.tensor_model_parallel_size > 1
        self._cp_size = config.context_parallel_size
        self.shares = self.skip_topk  # without an indexer: it attends to what `source_layer` chose
        self.selection = ReplayedSelection(recomputes=config.recompute_granularity is not None)
        # Megatron's layers read a shared choice here, and write their own. Megatron's own holder travels with
        # the micro-batch and is gone when a layer is recomputed.
        self._holder: dict[int, Tensor] = {}
        self._used: list[Tensor] = []  # what attention got, of each sequence in the current call
        self._only_chooses = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        *,
        x: Tensor,
        qr: Tensor,
        packed_seq_params: PackedSequences,
        position_ids: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """As Megatron's for one sequence after another; [t, 1, ...] of all that `packed_seq_params` describes.

        The indexer does not run when `selection` gives the tokens to attend to.
        """
        told = self.selection.begin()
        compares = told is not None and self.indexer is not None and self.selection.compares
        if self.indexer is not None and (told is None or compares):
            x, qr = self._whole(x), self._whole(qr)
        else:
            x = qr = query.new_empty(len(query), 1, 0)  # nobody reads them
        own = [length // self._cp_size for length in packed_seq_params.lengths]
        queries, keys, xs, qrs = (one.split(own) for one in (query, key, x, qr))
        tolds: Sequence[Tensor | None] = [None] * len(own) if told is None else told.split(own, dim=1)
        sequences: list[Callable[[Tensor | None, bool], Tensor]] = [
            partial(self._run, query=q, key=k, x=x, qr=r, **others)
            for q, k, x, r in zip(queries, keys, xs, qrs, strict=True)
        ]
        if compares:
            self.selection.compare(_joined([self._own_choice(run) for run in sequences]))
        wanted = self.selection.wants_choice
        self._used, outputs, chosen = [], [], []
        for run, mine in zip(sequences, tolds, strict=True):
            outputs.append(run(mine, told is not None or wanted))
            chosen.append(self._holder.get(self.layer_number))
        if told is not None:
            as_told = len(self._used) == len(own) and all(
                used is mine for used, mine in zip(self._used, tolds, strict=True)
            )
            self.selection.attended(told if as_told else _joined(self._used) if self._used else None)
        elif wanted:
            self.selection.chosen(_joined([one for one in chosen if one is not None]))
        self._holder, self._used = {}, []
        return torch.cat(outputs)

    def _whole(self, states: Tensor) -> Tensor:
        """The states of all tokens of this rank's row, for the indexer, through which no gradient passes."""
        states = states.detach()
        if not self._splits_row:
            return states
        return gather_from_sequence_parallel_region(states, group=self.pg_collection.tp)

    def _run(self, told: Tensor | None, shares: bool, **inputs: Any) -> Tensor:
        """Runs Megatron's layer on one sequence with the choice `told`, or with its indexer's own if that is None.

        With `shares` the layer leaves its choice in `_holder`. It then runs its indexer and its attention
        separately, without the kernel that does both.
        """
        self.index_share, self.skip_topk = shares, told is not None
        self._holder = {} if told is None else {self.source_layer: told}
        # Megatron has no hook at the place where it uses the final choice.
        theirs = dsa._run_sparse_attention
        dsa._run_sparse_attention = partial(self._attend, theirs)
        try:
            return super().forward(**inputs)
        finally:
            dsa._run_sparse_attention = theirs

    @torch.no_grad()
    def _own_choice(self, run: Callable[[None, bool], Tensor]) -> Tensor:
        """The indexer's own choice for one sequence, int64 [1, s, up to K]."""
        self._only_chooses = True
        try:
            run(None, True)
        finally:
            self._only_chooses = False
        return self._holder[self.layer_number]

    def _attend(self, attention: Callable[..., Tensor], *, query: Tensor, **others: Any) -> Tensor:
        """Runs in place of Megatron's attention, [s, 1, ...], and keeps the choice that it gets."""
        if self._only_chooses:
            return query[..., :1]  # a placeholder: nobody reads the output
        self._used.append(others["topk_indices"])
        return attention(query=query, **others)

    def _get_index_share_topk_holder(self, *unused: Any) -> dict[int, Tensor]:
        return self._holder

    def _get_index_share_topk_length_holder(self, *unused: Any) -> dict[int, Tensor]:
        return {}


def _joined(choices: Sequence[Tensor]) -> Tensor:
    """Joins the choices of a row's sequences, int64 [1, s, up to K] each, to [1, t, K]; -1 where there are fewer."""
    most = max(one.shape[-1] for one in choices)
    return torch.cat([pad(one, (0, most - one.shape[-1]), value=-1) for one in choices], dim=1)


def share_choices(chunk: torch.nn.Module) -> None:
    """Connects each layer of a model chunk that shares a choice to the layer that makes it.

    Raises ValueError when that layer is in another chunk.
    """
    layers = {m.layer_number: m for m in chunk.modules() if isinstance(m, SparseAttention)}
    for number, layer in layers.items():
        if not layer.shares:
            continue
        if layer.source_layer not in layers:
            raise ValueError(
                f"layer {number} (from 1) shares the choice of layer {layer.source_layer}, which is in "
                "another pipeline stage or model chunk; each must begin with a layer that chooses"
            )
        layer.selection.follow(layers[layer.source_layer].selection)


def forget_choices(chunks: Sequence[torch.nn.Module]) -> None:
    """Drops all given, chosen and shared choices. Call it after each pass over the micro-batches."""
    for chunk in chunks:
        for module in chunk.modules():
            if isinstance(module, SparseAttention):
                module.selection.forget()


def choosing_layers(config: TransformerConfig) -> list[int]:
    """The layers that have an indexer, by Megatron's numbers (from 1), ascending."""
    frequency, offset = config.dsa_indexer_topk_freq, config.dsa_indexer_skip_topk_offset
    numbers = range(1, config.num_layers + 1)
    return [n for n in numbers if not dsa.is_dsa_skip_topk_layer(n, offset, frequency)]


class SparseLatentAttention(AbsorbedMLASelfAttention):
    """`AbsorbedMLASelfAttention` from local modules, with whole down-projections (`latent_attention.py`)."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.linear_q_down_proj = WholeLinear(config, config.q_lora_rank)
        self.linear_kv_down_proj = WholeLinear(config, config.kv_lora_rank + config.qk_pos_emb_head_dim)
        self.rotary_pos_emb: Any = PackedPositions(self.rotary_pos_emb)

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        packed_seq_params: Any = None,
        **others: Any,
    ) -> Any:
        """As Megatron's, which would take any packed sequences for "thd" ones and drop a dimension."""
        self.rotary_pos_emb.packed = packed_seq_params
        return super().get_query_key_value_tensors(hidden_states, key_value_states, None, **others)


class IndexerLinear(torch.nn.Module):
    """A linear layer of the indexer, whole on every rank and applied to all tokens.

    Its weight is a buffer, because it is not trained.
    """

    def __init__(self, in_size: int, out_size: int, *, config: TransformerConfig, **unused: Any) -> None:
        super().__init__()
        shape, device = (out_size, in_size), torch.cuda.current_device()
        self.register_buffer("weight", torch.empty(shape, dtype=config.params_dtype, device=device))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[..., in] -> [..., out], and None as bias."""
        return torch.nn.functional.linear(x, self.get_buffer("weight")), None


class IndexerNorm(torch.nn.Module):
    """LayerNorm of the indexer's keys. Weight and bias are untrained buffers."""

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
    """The spec of latent attention with an indexer, from local modules; `norm` makes its norms."""
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
