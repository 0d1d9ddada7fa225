"""Builds the Megatron model. No other file chooses the model class or the layers' modules.

The class is `GPTModel`, although Megatron 0.19.2 announces `HybridModel` as its successor. In 0.19.2 both
support TP, SP, PP, VPP, CP, EP, MLA, MTP and RouterReplay, but HybridModel
- has only Transformer Engine's layers (hybrid_layer_specs.py), so without Transformer Engine it runs neither
  on a CPU nor on a GPU;
- has no `output_processor`, through which Verst computes log-probabilities at the trained positions alone;
- has neither Llama 3.1 rope scaling nor arguments for uneven pipeline splits;
- counts attention and MLP as two layers, so its checkpoints and layer numbers match no other tool's.

Layers are Transformer Engine's where it can run. Elsewhere they are Megatron's local layers with two
replacements: `RMSNorm` from this file, because torch's refuses sequence parallelism in Megatron's wrapper,
and `FlashCoreAttention`. The latter also replaces Transformer Engine's attention where that has no fused
kernel.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import logging
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.enums import ModelType
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt import gpt_layer_specs as specs
from megatron.core.tensor_parallel import set_defaults_if_not_set_tensor_model_parallel_attributes
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from verst.runtime.trainer.model.attention import (
    FlashCoreAttention,
    can_attend,
    packed_transformer_engine,
    transformer_engine_attends,
)
from verst.runtime.trainer.model.balanced_router import BalancedRouter
from verst.runtime.trainer.model.latent_attention import LatentAttention, PackedLatentAttention
from verst.runtime.trainer.model.packed_sequences import PackedPositions
from verst.runtime.trainer.model.scalar_head import ScalarHead
from verst.runtime.trainer.model.sparse_attention import share_choices, sparse_attention


class RMSNorm(torch.nn.Module):
    """RMSNorm (arXiv:1910.07467), computed in fp32 as in transformers, also on sequence-parallel shards.

    Under sequence parallelism each rank sees a part of the tokens, so the weight's gradient is partial.
    Megatron sums the gradients of parameters that are marked `sequence_parallel`.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> the same shape and dtype."""
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def build_chunks(
    args: argparse.Namespace, config: TransformerConfig, *, scalar_head: bool = False
) -> list[DistributedDataParallel]:
    """Builds this rank's model chunks (one, or one per virtual pipeline stage), wrapped in Megatron's DDP.

    All parameters are zero; the caller loads them. With `scalar_head` the model has one in place of its output layer.
    """
    return _wrap(args, config, _bare_chunks(args, config, scalar_head=scalar_head))


def build_frozen_chunks(args: argparse.Namespace, config: TransformerConfig) -> list[torch.nn.Module]:
    """Builds this rank's chunks of a model that is never trained: it has no gradients, and no DDP around it.

    All parameters are zero; the caller loads them.
    """
    chunks = _with_precision(config, _bare_chunks(args, config))
    for chunk in chunks:
        chunk.requires_grad_(False)
    return chunks


def _bare_chunks(
    args: argparse.Namespace, config: TransformerConfig, *, scalar_head: bool = False
) -> list[torch.nn.Module]:
    from megatron.core import parallel_state as mpu

    stages = args.virtual_pipeline_model_parallel_size
    chunks: list[torch.nn.Module] = []
    for vp_stage in range(stages) if stages else [None]:
        first = mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage)
        last = mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage)
        chunks.append(_build_chunk(args, config, first, last, vp_stage, scalar_head))
    return chunks


def _build_chunk(
    args: argparse.Namespace,
    config: TransformerConfig,
    first: bool,
    last: bool,
    vp_stage: int | None,
    scalar_head: bool,
) -> GPTModel:
    # GPTModel warns that it is deprecated.
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
    block = decoder_block(args, config, vp_stage)
    block = dataclasses.replace(block, layer_specs=[_with_our_router(x) for x in block.layer_specs])
    model = GPTModel(
        config=config,
        transformer_layer_spec=block,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
        vp_stage=vp_stage,
    )
    if scalar_head and last:
        model.output_layer = ScalarHead(config)
    model.model_type = ModelType.encoder_or_decoder
    model.vp_stage = vp_stage
    if hasattr(model, "rotary_pos_emb"):  # latent attention has one in each layer
        model.rotary_pos_emb = PackedPositions(model.rotary_pos_emb)
    share_choices(model)
    with torch.no_grad():
        for parameter in model.parameters():
            set_defaults_if_not_set_tensor_model_parallel_attributes(parameter)
            # Uninitialised rows of a padded vocabulary could hold NaN, and 0 * NaN is NaN.
            parameter.zero_()
    return model


def decoder_block(
    args: argparse.Namespace, config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """The layers of one model chunk, each dense or mixture-of-experts as `moe-layer-freq` says.

    Raises ValueError for a normalization other than RMSNorm without Transformer Engine.
    """
    if _with_transformer_engine(args):
        block = specs.get_gpt_decoder_block_spec(config, use_transformer_engine=True, vp_stage=vp_stage)
        theirs = not can_attend(config) or transformer_engine_attends(config)
        attention = packed_transformer_engine() if theirs else FlashCoreAttention
        layers = [_with_core_attention(x, attention) for x in block.layer_specs]
        return dataclasses.replace(block, layer_specs=layers)
    sparse = config.experimental_attention_variant == "dsa"
    usual = copy.copy(config)
    usual.experimental_attention_variant = None  # Megatron's own block for it needs Transformer Engine
    block = specs.get_gpt_decoder_block_spec(
        usual, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage
    )
    if config.normalization != "RMSNorm":
        raise ValueError(
            f"normalization {config.normalization} needs Transformer Engine; without it there is only RMSNorm"
        )
    layers = [_with_our_modules(layer) for layer in block.layer_specs]
    if sparse:
        layers = [_with_sparse_attention(layer) for layer in layers]
    return dataclasses.replace(block, layer_specs=layers, layer_norm=RMSNorm)


def _with_transformer_engine(args: argparse.Namespace) -> bool:
    return args.transformer_impl == "transformer_engine"


def _with_core_attention(layer: ModuleSpec, core: type[torch.nn.Module]) -> ModuleSpec:
    """The layer with another core attention, and for MLA with `PackedLatentAttention`."""
    attention = layer.submodules.self_attention
    latent = attention.module is MLASelfAttention
    attention = dataclasses.replace(
        attention,
        module=PackedLatentAttention if latent else attention.module,
        submodules=dataclasses.replace(attention.submodules, core_attention=core),
    )
    return dataclasses.replace(
        layer, submodules=dataclasses.replace(layer.submodules, self_attention=attention)
    )


def _with_our_router(layer: ModuleSpec) -> ModuleSpec:
    """The layer with `BalancedRouter`, if it has experts."""
    mlp = layer.submodules.mlp
    if not _is_sparse(mlp):
        return layer
    assert isinstance(mlp, functools.partial)
    parts = dataclasses.replace(mlp.keywords["submodules"], router=BalancedRouter)
    mlp = functools.partial(mlp.func, *mlp.args, **{**mlp.keywords, "submodules": parts})
    return dataclasses.replace(layer, submodules=dataclasses.replace(layer.submodules, mlp=mlp))


def _with_sparse_attention(layer: ModuleSpec) -> ModuleSpec:
    parts = dataclasses.replace(layer.submodules, self_attention=sparse_attention(RMSNorm))
    return dataclasses.replace(layer, submodules=parts)


def _with_our_modules(layer: ModuleSpec) -> ModuleSpec:
    """A local layer with `RMSNorm` and `FlashCoreAttention`, and `LatentAttention` for MLA."""
    parts = layer.submodules
    attention = parts.self_attention
    norms = {
        name: RMSNorm
        for name in ("q_layernorm", "k_layernorm", "kv_layernorm")
        if _is_norm(getattr(attention.submodules, name, None))
    }
    latent = attention.module is MLASelfAttention
    attention = dataclasses.replace(
        attention,
        module=LatentAttention if latent else attention.module,
        params={**attention.params, "attn_mask_type": AttnMaskType.causal},
        submodules=dataclasses.replace(attention.submodules, core_attention=FlashCoreAttention, **norms),
    )
    # Checkpoints name parameters as Transformer Engine's layers do. Those fuse the norm before a dense MLP
    # into the MLP's first linear layer, but not the norm before experts. Megatron's map renames both.
    names = dict(_LATENT_NAMES if latent else parts.sharded_state_dict_keys_map)
    if _is_sparse(parts.mlp):
        del names["pre_mlp_layernorm."]
    return dataclasses.replace(
        layer,
        submodules=dataclasses.replace(
            parts,
            input_layernorm=RMSNorm,
            pre_mlp_layernorm=RMSNorm,
            self_attention=attention,
            sharded_state_dict_keys_map=names,
        ),
    )


# Megatron has no such map for its local latent attention. The norm before the attention is separate in both
# kinds of layers.
_LATENT_NAMES = {
    "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
    "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def _is_sparse(mlp: Any) -> bool:
    return MoELayer in (getattr(mlp, "func", None), getattr(mlp, "module", None))  # a partial or a ModuleSpec


def _is_norm(module: Any) -> bool:
    from megatron.core.transformer.identity_op import IdentityOp

    return module is not None and module is not IdentityOp


def _wrap(
    args: argparse.Namespace, config: TransformerConfig, chunks: list[torch.nn.Module]
) -> list[DistributedDataParallel]:
    """Adds precision and gradient reduction as `megatron.training` does."""
    from megatron.training.training import get_megatron_ddp_config, wrap_model_chunks_with_ddp

    return wrap_model_chunks_with_ddp(
        _with_precision(config, chunks),
        config,
        get_megatron_ddp_config(args),
        use_layer_wise_distributed_optimizer=args.use_layer_wise_distributed_optimizer,
        # Buckets let communication overlap with the backward pass. Only the first chunk's can start early.
        disable_bucketing_per_chunk=[
            i > 0 or args.overlap_param_gather_with_optimizer_step for i in range(len(chunks))
        ],
    )


def _with_precision(config: TransformerConfig, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The chunks on the device and in the model's precision, as `megatron.training` does it."""
    chunks = [chunk.to(torch.cuda.current_device()) for chunk in chunks]
    if config.bf16:
        chunks = [Float16Module(config, chunk) for chunk in chunks]
        for router in (
            module for chunk in chunks for module in chunk.modules() if isinstance(module, TopKRouter)
        ):
            # Megatron does this before each use. A bias loaded from a checkpoint before then would be
            # rounded.
            router._maintain_float32_expert_bias()
    return chunks
