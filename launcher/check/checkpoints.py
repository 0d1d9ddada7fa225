"""Checks which checkpoints a recipe keeps: that there will be any of those that it asks for."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.check.evaluation import few_are_evaluated
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe


def checkpoint_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of `checkpoint.keep_every` and `checkpoint.keep_best`."""
    checkpoint = recipe.checkpoint
    if checkpoint.keep_every is not None and checkpoint.keep_every % checkpoint.interval:
        yield Fault(
            "checkpoint.keep_every",
            f"is {checkpoint.keep_every}, but checkpoints are written every {checkpoint.interval} steps "
            "(checkpoint.interval): must be a multiple of that",
        )
    if checkpoint.keep_best and (why := few_are_evaluated(recipe)):
        yield Fault("checkpoint.keep_best", f"is {checkpoint.keep_best}, but {why}")
