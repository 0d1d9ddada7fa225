"""Makes Megatron's arguments out of a checkpoint and a recipe, with Megatron's own parser.

Three sources become one command line:
- the model's Family gives the options that the checkpoint fixes (layers, widths, …);
- `defaults.py` gives the options that Verst needs or prefers;
- the recipe's `trainer.megatron` gives the rest, under Megatron's own names.

Only `runtime/trainer` uses the resulting namespace. `check` lists every fault at plan time. It needs neither
CUDA nor a process group, and it never exits.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from typing import Any

from verst.runtime.messages.model_config import ArgumentValue
from verst.runtime.trainer.model.arguments.command_line import (
    device_capability,
    megatron_parser,
    to_argv,
    without_noise,
)
from verst.runtime.trainer.model.arguments.defaults import defaults
from verst.runtime.trainer.model.arguments.faults import option_faults
from verst.runtime.trainer.model.arguments.validation import validated


class ArgumentFaultsError(ValueError):
    """Everything that is wrong with `trainer.megatron`. `faults` has one line for each fault."""

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
    """Lists every fault of the recipe's `trainer.megatron` for `world_size` ranks; empty when it can run.

    `model_shape` is what the Family's `megatron_args` returns for the checkpoint. Importing Megatron takes
    some seconds.
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
    """Returns Megatron's validated namespace and its TransformerConfig.

    Raises ArgumentFaultsError. It lists every fault of single options. If there is none, it has the first
    fault that Megatron's validation finds in their combination.
    """
    with without_noise(), device_capability():
        parser = megatron_parser()
        faults = option_faults(parser, megatron, model_shape)
        if faults:
            raise ArgumentFaultsError(faults)
        options = {**defaults(dtype, train_steps, megatron, model_shape), **model_shape, **megatron}
        if routing_replay:
            options["moe-enable-routing-replay"] = True
        try:
            parsed = copy.deepcopy(parser.parse_args(to_argv(options)))  # Megatron's validation changes it
            return validated(parsed, world_size, rank)
        # Megatron's checks raise AssertionError or ValueError, and one calls exit().
        except (AssertionError, ValueError, RuntimeError, SystemExit) as error:
            raise ArgumentFaultsError([str(error) or type(error).__name__]) from error
