"""Validates options together: Megatron's own checks, and those that it makes too late or not at all."""

from __future__ import annotations

import argparse
import os
from typing import Any

from verst.sync.layout.layout import ParallelSizes


def validated(args: argparse.Namespace, world_size: int, rank: int) -> tuple[argparse.Namespace, Any]:
    """Completes and validates parsed arguments; returns them and Megatron's TransformerConfig.

    Raises whatever Megatron's checks raise, or ValueError.
    """
    from megatron.training.argument_utils import core_transformer_config_from_args
    from megatron.training.arguments import validate_args

    args._is_global_batch_size_explicitly_specified = False  # Megatron's own parse_args adds it
    args.rank, args.world_size, args.enable_msc = rank, world_size, False
    if max(args.tensor_model_parallel_size, args.context_parallel_size) > 1:
        # Megatron needs one hardware queue, so that communication starts in the order in which it is issued.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    validate_args(args)
    _check_expert_parallelism(args)
    _check_balancing(args)
    args.padded_vocab_size = padded_vocab_size(args)
    # Micro-batches differ in length, so pipeline stages send each other the shape.
    args.variable_seq_lengths = args.pipeline_model_parallel_size > 1
    if args.multi_latent_attention:
        _pass_yarn_on(args)
    config = core_transformer_config_from_args(args)
    _check_padding_reaches_routers(config)
    _check_shared_choices(args, config)
    return args, config


def _pass_yarn_on(args: argparse.Namespace) -> None:
    """Gives YaRN's options to latent attention, which has them under other names but without options of its own."""
    for name in ("original_max_position_embeddings", "beta_fast", "beta_slow"):
        value = getattr(args, f"yarn_{name}")
        if value is not None:
            setattr(args, name, value)


def _check_shared_choices(args: argparse.Namespace, config: Any) -> None:
    """Checks that each model chunk begins with a layer that chooses its own tokens for sparse attention.

    A layer that shares the choice of an earlier layer needs that layer in its own chunk.
    """
    if config.experimental_attention_variant != "dsa" or config.dsa_indexer_topk_freq == 1:
        return
    from verst.runtime.trainer.model.sparse_attention import choosing_layers

    choosing = [number - 1 for number in choosing_layers(config)]
    chunks = [c for stage in ParallelSizes.from_arguments(args).stage_layers(args.num_layers) for c in stage]
    wrong = sorted(chunk[0] for chunk in chunks if len(chunk) and chunk[0] not in choosing)
    if wrong:
        raise ValueError(
            f"pipeline stages or model chunks begin with the layers {wrong} (from 0), which share the choice of "
            f"an earlier layer; each must begin with one of {choosing}: set decoder-first-pipeline-num-layers "
            "or decoder-last-pipeline-num-layers"
        )


def _check_balancing(args: argparse.Namespace) -> None:
    """Checks that padding takes no part in balancing losses: micro-batches are padded, and lengths differ."""
    given = args.moe_router_load_balancing_type
    for kind in given if isinstance(given, list) else [given]:
        if args.num_experts and kind not in ("none", "aux_loss"):
            raise ValueError(
                f"moe-router-load-balancing-type: is {kind}, which Megatron computes right only for sequences of one "
                "length without padding; use aux_loss or none"
            )


def _check_padding_reaches_routers(config: Any) -> None:
    from verst.runtime.trainer.model.balanced_router import balances

    if config.mlp_chunks_for_training > 1 and balances(config):
        raise ValueError(
            f"mlp-chunks-for-training: is {config.mlp_chunks_for_training}; Megatron then hides from the routers which "
            "tokens are padding, which would take part in their balancing losses: leave it out, or set "
            "moe-aux-loss-coeff and moe-z-loss-coeff to 0"
        )


def _check_expert_parallelism(args: argparse.Namespace) -> None:
    """Checks what Megatron only finds when it creates process groups or runs."""
    expert = (
        args.expert_tensor_parallel_size * args.expert_model_parallel_size * args.pipeline_model_parallel_size
    )
    if args.world_size % expert:
        raise ValueError(
            f"world size ({args.world_size}) is not divisible by expert-tensor-parallel-size * "
            f"expert-model-parallel-size * pipeline-model-parallel-size ({expert})"
        )
    if (
        args.num_experts
        and args.moe_token_dispatcher_type == "allgather"
        and args.expert_model_parallel_size > 1
    ):
        raise ValueError(
            "moe-token-dispatcher-type: allgather needs equally many tokens on every rank, and micro-batches "
            "differ in length; use alltoall or flex"
        )
    if args.mtp_num_layers:
        raise ValueError("mtp-num-layers: multi-token prediction is not trained; leave it out")
    names = ["num_attention_heads", "ffn_hidden_size"]
    if not args.multi_latent_attention:  # it has no such groups
        names.append("num_query_groups")
    for name in names:
        if (getattr(args, name) or 0) % args.tensor_model_parallel_size:
            raise ValueError(
                f"{name.replace('_', '-')} ({getattr(args, name)}) is not divisible by "
                f"tensor-model-parallel-size ({args.tensor_model_parallel_size})"
            )


def padded_vocab_size(args: argparse.Namespace) -> int:
    """Rows of the embedding over all tensor-parallel ranks.

    That is the vocabulary size, rounded up so that the ranks divide it evenly.
    """
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return -(-args.vocab_size // multiple) * multiple
