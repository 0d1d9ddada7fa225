"""Checks an engine's parallel sizes (`rollout.sglang`). SGLang reports these faults only when it starts, or never."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.plan.parallelism import DATA_PARALLEL_SIZE, argument, size
from verst.launcher.recipe.faults import Fault
from verst.runtime.rollout.config import RolloutConfig


def engine_faults(rollout: RolloutConfig) -> Iterator[Fault]:
    """The faults in the settings of data-parallel attention."""
    arguments = rollout.sglang
    groups = size(arguments, *DATA_PARALLEL_SIZE)
    ranks = size(arguments, "tp-size", "tensor-parallel-size", "tp")
    attention = argument(arguments, "enable-dp-attention") is True
    place = "rollout.sglang." + next(
        (k for k in arguments if k.replace("_", "-") in DATA_PARALLEL_SIZE), "dp-size"
    )
    if groups > 1 and not attention:
        yield Fault(
            place,
            f"is {groups} without enable-dp-attention: SGLang cannot update the weights of {groups} model copies in "
            f"one engine. Leave it out and set rollout.engines to {groups * rollout.engines}, or set "
            "enable-dp-attention",
        )
    elif groups > 1 and ranks % groups:
        yield Fault(
            place,
            f"is {groups}, which does not divide tp-size ({ranks}): enable-dp-attention splits the engine's ranks "
            f"into {groups} equal groups, each with a full copy of the attention weights",
        )
    elif groups > rollout.concurrency:
        yield Fault(
            "rollout.concurrency",
            f"is {rollout.concurrency}, less than the {groups} groups of an engine (rollout.sglang.dp-size) that "
            f"share it: set it to at least {groups}",
        )
    for name in ("enable-dp-attention", "enable-dp-lm-head"):
        if groups == 1 and argument(arguments, name) is True:
            yield Fault(
                f"rollout.sglang.{name}",
                "has no effect with one group: set dp-size to between 2 and tp-size, or leave this out",
            )
