"""Builds Megatron's optimizer and its learning-rate schedule, counted in optimiser steps."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor


def build_optimizer(args: argparse.Namespace, chunks: Sequence[torch.nn.Module]) -> Any:
    """Builds the optimizer. Load the parameters first: the fp32 masters are copied from them."""
    from megatron.training.training import get_megatron_optimizer_config

    config, overrides = get_megatron_optimizer_config(args)
    optimizer = get_megatron_optimizer(
        config, list(chunks), overrides, use_gloo_process_groups=args.use_gloo_process_groups
    )
    _fuse(optimizer)
    return optimizer


def _fuse(optimizer: Any) -> None:
    """Turns on torch's fused Adam: one pass over memory instead of ten. Megatron does not ask for it."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if isinstance(inner, torch.optim.Adam):  # AdamW too; not Transformer Engine's own
            inner.defaults.update(fused=True, foreach=False)
            for group in inner.param_groups:
                group.update(fused=True, foreach=False)


def build_scheduler(args: argparse.Namespace, optimizer: Any, train_steps: int) -> OptimizerParamScheduler:
    """Builds the schedule over `train_steps` optimiser steps.

    Megatron's own set-up counts samples instead.
    """
    decay_steps = args.lr_decay_iters or train_steps
    warmup = args.lr_warmup_iters
    if args.lr_warmup_fraction is not None:
        warmup = args.lr_warmup_fraction * decay_steps
    return OptimizerParamScheduler(
        optimizer,
        init_lr=args.lr_warmup_init,
        max_lr=args.lr,
        min_lr=args.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay_steps,
        lr_decay_style=args.lr_decay_style,
        start_wd=args.start_weight_decay,
        end_wd=args.end_weight_decay,
        wd_incr_steps=train_steps,
        wd_incr_style=args.weight_decay_incr_style,
        wsd_decay_steps=args.lr_wsd_decay_iters,
        lr_wsd_decay_style=args.lr_wsd_decay_style,
    )


def optimizer_tensors(optimizer: Any) -> Iterable[Tensor]:
    """Masters and moments of any Megatron optimizer, and parameters that it steps without a master."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if inner is None:  # this rank has no parameters of that kind
            continue
        for group in inner.param_groups:
            yield from (parameter.data for parameter in group["params"])
        for of_parameter in inner.state.values():
            yield from (value for value in of_parameter.values() if isinstance(value, Tensor))
