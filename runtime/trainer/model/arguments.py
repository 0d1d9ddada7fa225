"""Megatron's arguments: from a checkpoint's shape, our defaults and the recipe, through Megatron's own parser.

Three sources become one command line. What the checkpoint fixes (layers, widths, …) comes from the model's
Family, what Verst needs or prefers comes from here, the rest is the recipe's `trainer.megatron`, passed by its
own names. The resulting namespace is used inside `runtime/trainer` only.

`check` lists every fault at plan time; it needs neither CUDA nor a process group and never exits.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from verst.runtime.messages.model_config import ArgumentValue
from verst.sync.layout.layout import ParallelSizes

# What other parts of the recipe or Verst itself decide. Setting it in trainer.megatron is a fault.
_DECIDED_ELSEWHERE = {
    "micro-batch-size": "the batch plan sizes micro-batches; set trainer.max_tokens_per_microbatch",
    "global-batch-size": "set algorithm.prompts_per_step and algorithm.samples_per_prompt",
    "train-iters": "set algorithm.steps",
    "train-samples": "set algorithm.steps",
    "bf16": "set model.dtype: bfloat16",
    "fp16": "set model.dtype to bfloat16 or float32",
    "load": "checkpoints live in the run folder; see the checkpoint section",
    "save": "checkpoints live in the run folder; see the checkpoint section",
    "save-interval": "set checkpoint.interval",
    "async-save": "set checkpoint.async",
    "data-path": "set data.train.path",
    "calculate-per-token-loss": "the step plan carries each token's weight",
    "yaml-cfg": "write the options into trainer.megatron",
    "perform-rl-step": "Verst has its own step",
    "tokenizer-type": "the tokenizer comes with model.path",
    "no-initialization": "weights come from model.path",
    "overlap-param-gather": "every step's weights go to the engines at once, so there is nothing to overlap",
    "use-tp-pp-dp-mapping": "ranks are laid out in the order tp-cp-ep-dp-pp",
    "moe-enable-routing-replay": "set algorithm.routing_replay",
}

# What a Family sets without the checkpoint fixing it: the recipe may say otherwise.
_PREFERENCES = ("moe-router-load-balancing-type", "moe-aux-loss-coeff", "hidden-dropout")


class ArgumentFaultsError(ValueError):
    """Everything that is wrong with `trainer.megatron`; `faults` has one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("trainer.megatron: " + "; ".join(faults))
        self.faults = faults


def check(
    megatron: Mapping[str, ArgumentValue],
    world_size: int,
    model_shape: Mapping[str, ArgumentValue],
    *,
    dtype: str = "bfloat16",
    train_steps: int = 1,
) -> list[str]:
    """Every fault of the recipe's `trainer.megatron` for `world_size` ranks; empty when it can run.

    `model_shape` is the Family's `megatron_args` of the checkpoint. Importing Megatron takes some seconds.
    """
    try:
        parse(megatron, world_size, model_shape, dtype=dtype, train_steps=train_steps)
    except ArgumentFaultsError as error:
        return error.faults
    return []


def parse(
    megatron: Mapping[str, ArgumentValue],
    world_size: int,
    model_shape: Mapping[str, ArgumentValue],
    *,
    dtype: str,
    train_steps: int,
    rank: int = 0,
    routing_replay: bool = False,
) -> tuple[argparse.Namespace, Any]:
    """Megatron's validated namespace and its TransformerConfig.

    Raises ArgumentFaultsError with every fault that the parser finds in single options, or else with the first
    that Megatron's validation finds in their combination.
    """
    with _without_noise(), _device_capability():
        parser = _parser()
        faults = _option_faults(parser, megatron, model_shape)
        if faults:
            raise ArgumentFaultsError(faults)
        options = {**_defaults(dtype, train_steps, megatron, model_shape), **model_shape, **megatron}
        if routing_replay:
            options["moe-enable-routing-replay"] = True
        try:
            return _validated(parser.parse_args(to_argv(options)), world_size, rank)
        # Megatron's checks are assertions and ValueErrors, one is an exit().
        except (AssertionError, ValueError, RuntimeError, SystemExit) as error:
            raise ArgumentFaultsError([str(error) or type(error).__name__]) from error


def to_argv(options: Mapping[str, ArgumentValue]) -> list[str]:
    """`{"lr": 1e-6, "swiglu": True, "moe-layer-freq": [0, 1]}` as a command line; False leaves a flag out."""
    argv: list[str] = []
    for name, value in options.items():
        if value is False:
            continue
        argv.append(f"--{name}")
        if isinstance(value, list):
            argv += [str(v) for v in value]
        elif value is not True:
            argv.append(str(value))
    return argv


def padded_vocab_size(args: argparse.Namespace) -> int:
    """Rows of the embedding over all tensor-parallel ranks: the vocabulary rounded up so that they divide it."""
    multiple = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    return -(-args.vocab_size // multiple) * multiple


def transformer_engine_usable() -> bool:
    """Whether Transformer Engine's layers can run here."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def _defaults(
    dtype: str,
    train_steps: int,
    megatron: Mapping[str, ArgumentValue],
    model_shape: Mapping[str, ArgumentValue],
) -> dict[str, ArgumentValue]:
    """What Verst sets unless the recipe or the checkpoint says otherwise."""
    chunks = 2 * int(str(megatron.get("context-parallel-size", 1)))
    longest = int(str(model_shape.get("max-position-embeddings", 1 << 17)))
    implementation = megatron.get("transformer-impl", model_shape.get("transformer-impl"))
    fused = transformer_engine_usable() and implementation != "local"
    experts = {"moe-grouped-gemm": True, "moe-permute-fusion": True} if "num-experts" in model_shape else {}
    apex = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    return {
        "transformer-impl": "transformer_engine" if fused else "local",
        "distributed-backend": "nccl" if torch.cuda.is_available() else "gloo",
        "bf16": dtype == "bfloat16",
        "micro-batch-size": 1,
        "train-iters": train_steps,
        "seq-length": longest // chunks * chunks,
        "lr": 1e-6,
        "lr-decay-style": "constant",
        "hidden-dropout": 0.0,
        "attention-dropout": 0.0,
        "make-vocab-size-divisible-by": 1,
        "calculate-per-token-loss": True,
        "no-initialization": True,  # every weight is read from the Hugging Face folder
        # The default, allgather, wants equally many tokens on every rank of the expert-parallel group.
        "moe-token-dispatcher-type": "alltoall",
        "moe-router-load-balancing-type": "none",
        "no-gradient-accumulation-fusion": not apex,
        "no-masked-softmax-fusion": True,
        "no-rope-fusion": not fused,
        "no-bias-swiglu-fusion": not fused,
        "no-bias-gelu-fusion": not fused,
        "no-bias-dropout-fusion": not fused,
        "no-persist-layer-norm": not fused,
        **(experts if fused else {}),
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def _parser() -> argparse.ArgumentParser:
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(_Parser(allow_abbrev=False, exit_on_error=False, add_help=False))


def _option_faults(
    parser: argparse.ArgumentParser,
    megatron: Mapping[str, ArgumentValue],
    model_shape: Mapping[str, ArgumentValue],
) -> list[str]:
    """Faults of single options: unknown, malformed, decided elsewhere, or against the checkpoint."""
    actions = {o.removeprefix("--"): a for a in parser._actions for o in a.option_strings}
    from_checkpoint = _values(parser, actions, model_shape)
    faults = []
    for name, value in megatron.items():
        action = actions.get(name)
        if action is None:
            faults.append(_unknown(name, list(actions)))
            continue
        if name in _DECIDED_ELSEWHERE:
            faults.append(f"{name}: not an option here: {_DECIDED_ELSEWHERE[name]}")
            continue
        if isinstance(action, argparse._StoreAction) and isinstance(value, bool):
            faults.append(f"{name}: needs a value, got {str(value).lower()}")
            continue
        try:
            parsed = _values(parser, actions, {name: value})[action.dest]
        except argparse.ArgumentError as error:
            faults.append(f"{name}: {error.message}")
            continue
        if (
            name not in _PREFERENCES
            and action.dest in from_checkpoint
            and parsed != from_checkpoint[action.dest]
        ):
            faults.append(
                f"{name}: the recipe says {value}, the checkpoint {from_checkpoint[action.dest]}; leave it out"
            )
    return faults


def _values(
    parser: argparse.ArgumentParser,
    actions: Mapping[str, argparse.Action],
    options: Mapping[str, ArgumentValue],
) -> dict[str, Any]:
    """What `options` alone parse to, by destination."""
    namespace = parser.parse_args(to_argv(options))
    return {actions[name].dest: getattr(namespace, actions[name].dest) for name in options}


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lstrip("-").replace("_", "-"), known, n=1, cutoff=0.6)
    return f"{name}: Megatron has no such option" + (f"; nearest is {near[0]}" if near else "")


def _validated(args: argparse.Namespace, world_size: int, rank: int) -> tuple[argparse.Namespace, Any]:
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


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Megatron's parser prints every argument and warns of every optional package."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _device_capability() -> Iterator[None]:
    """Where recipes are checked there may be no GPU: answer for one that refuses nothing."""
    if torch.cuda.is_available():
        yield
        return
    properties = mock.Mock(major=9, minor=0)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        yield
