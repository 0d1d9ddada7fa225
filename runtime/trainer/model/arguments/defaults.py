"""Megatron's options as Verst sets them, unless the recipe or the checkpoint sets them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch

from verst.runtime.messages.model_config import ArgumentValue
from verst.runtime.trainer.config import OPTIMIZER_DEFAULTS


def defaults(
    dtype: str,
    train_steps: int,
    megatron: Mapping[str, ArgumentValue],
    model_shape: Mapping[str, ArgumentValue],
) -> dict[str, ArgumentValue]:
    """Returns Verst's options; those of `model_shape` and `megatron` take precedence over them."""
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
        **OPTIMIZER_DEFAULTS,
        "hidden-dropout": 0.0,
        "attention-dropout": 0.0,
        "make-vocab-size-divisible-by": 1,
        "calculate-per-token-loss": True,
        "no-initialization": True,  # every weight is read from the Hugging Face folder
        # Megatron's default, allgather, needs equally many tokens on every rank of the expert-parallel group.
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


def transformer_engine_usable() -> bool:
    """Whether Transformer Engine's layers can run on this machine."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
