"""Megatron's checks of the options' combination, and those that it would make too late or not at all."""

from __future__ import annotations

import argparse
import os
from typing import Any

from verst.sync.layout.layout import ParallelSizes


def validated(args: argparse.Namespace, world_size: int, rank: int) -> tuple[argparse.Namespace, Any]:
    from megatron.training.argument_utils import core_transformer_config_from_args
    from megatron.training.arguments import validate_args

    args._is_global_batch_size_explicitly_specified = False  # what Megatron's own parse_args adds
    args.rank, args.world_size, args.enable_msc = rank, world_size, False
    if max(args.tensor_model_parallel_size, args.context_parallel_size) > 1:
        # Megatron wants one hardware queue, so that communication starts in the order it is issued.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    validate_args(args)
    _check_expert_parallelism(args)
    args.padded_vocab_size = padded_vocab_size(args)
    # Micro-batches differ in length, so pipeline stages tell each other the shape.
    args.variable_seq_lengths = args.pipeline_model_parallel_size > 1
    config = core_transformer_config_from_args(args)
    _check_shared_choices(args, config)
    return args, config


def _check_shared_choices(args: argparse.Namespace, config: Any) -> None:
    """A layer of sparse attention that shares the choice of one before it needs that one beside it."""
    if config.experimental_attention_variant != "dsa" or config.dsa_indexer_topk_freq == 1:
        return
    from verst.runtime.trainer.model.sparse_attention import choosing_layers

    choosing = [number - 1 for number in choosing_layers(config)]
    chunks = [c for stage in ParallelSizes.from_arguments(args).stage_layers(args.num_layers) for c in stage]
    wrong = sorted(chunk[0] for chunk in chunks if len(chunk) and chunk[0] not in choosing)
    if wrong:
        raise ValueError(
            f"pipeline stages or model chunks begin with the layers {wrong} (from 0), which share what a layer before "
            f"them chose; each must begin with one of {choosing}: set decoder-first-pipeline-num-layers or "
            "decoder-last-pipeline-num-layers"
        )


def _check_expert_parallelism(args: argparse.Namespace) -> None:
    """Megatron finds these only when it makes process groups or runs."""
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
    if not args.multi_latent_attention:  # which has no such groups
        names.append("num_query_groups")
    for name in names:
        if (getattr(args, name) or 0) % args.tensor_model_parallel_size:
            raise ValueError(
                f"{name.replace('_', '-')} ({getattr(args, name)}) is not divisible by "
                f"tensor-model-parallel-size ({args.tensor_model_parallel_size})"
            )


def padded_vocab_size(args: argparse.Namespace) -> int:
    """Rows of the embedding over all tensor-parallel ranks: the vocabulary rounded up so that they divide it."""
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return -(-args.vocab_size // multiple) * multiple
