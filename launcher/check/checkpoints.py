"""Checks which checkpoints a recipe keeps: that there will be any of those that it asks for."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe


def checkpoint_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of `checkpoint.keep_every` and `checkpoint.keep_best`."""
    checkpoint, held_out = recipe.checkpoint, recipe.data.eval
    if checkpoint.keep_every is not None and checkpoint.keep_every % checkpoint.interval:
        yield Fault(
            "checkpoint.keep_every",
            f"is {checkpoint.keep_every}, but checkpoints are written every {checkpoint.interval} steps "
            "(checkpoint.interval): must be a multiple of that",
        )
    if not checkpoint.keep_best:
        return
    if held_out is None or held_out.interval is None:
        missing = "there is no data.eval" if held_out is None else "data.eval.interval is not set"
        yield Fault(
            "checkpoint.keep_best",
            f"is {checkpoint.keep_best}, but no checkpoint before the last is evaluated: {missing}",
        )
    elif held_out.interval % checkpoint.interval and checkpoint.interval % held_out.interval:
        yield Fault(
            "checkpoint.keep_best",
            f"is {checkpoint.keep_best}, but few checkpoints are evaluated: data.eval.interval "
            f"({held_out.interval}) and checkpoint.interval ({checkpoint.interval}) do not divide each other",
        )
    elif recipe.algorithm.warm_start is not None and recipe.algorithm.warm_start.steps % min(
        held_out.interval, checkpoint.interval
    ):
        yield Fault(
            "checkpoint.keep_best",
            f"is {checkpoint.keep_best}, but no checkpoint before the last is evaluated: evaluations count from the "
            f"end of the warm start, checkpoints from its beginning. Make algorithm.warm_start.steps "
            f"({recipe.algorithm.warm_start.steps}) a multiple of {min(held_out.interval, checkpoint.interval)}",
        )
