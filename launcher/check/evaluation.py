"""Checks what a recipe says of its evaluations: the figures that decide, and which checkpoints will have them."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from verst.launcher.recipe.faults import Fault, nearest
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.algorithms.config import EvalFigure


def evaluation_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of early stop, of the figure that says which checkpoint is best, and of `data.eval_engines`."""
    data, early = recipe.data, recipe.algorithm.early_stop
    if early is not None:
        yield from _figure("algorithm.early_stop", early, recipe)
        named = data.eval_sets.get(early.set or "")
        if named is not None and named.interval is None:
            yield Fault(
                "algorithm.early_stop",
                f"watches the set {early.set}, which is evaluated only before and after training: set "
                f"{data.eval_place(str(early.set))}.interval",
            )
    if recipe.checkpoint.best != _default(recipe):
        yield from _figure("checkpoint.best", recipe.checkpoint.best, recipe)
    if data.eval_engines is not None and not data.eval_sets:
        yield Fault("data.eval_engines", "has no effect without data.eval")
    elif data.eval_engines is not None and data.eval_engines > recipe.rollout.engines:
        yield Fault(
            "data.eval_engines",
            f"is {data.eval_engines}, but there are {recipe.rollout.engines} engines (rollout.engines)",
        )


def few_are_evaluated(recipe: Recipe) -> str | None:
    """Why few checkpoints before the last would be evaluated with the set that says which is best; None if many are."""
    best, every = recipe.checkpoint.best, recipe.checkpoint.interval
    each = recipe.data.eval_sets.get(best.set or "")
    if each is None:
        return (
            None
            if recipe.data.eval_sets
            else "no checkpoint before the last is evaluated: there is no data.eval"
        )
    place = f"{recipe.data.eval_place(str(best.set))}.interval"
    if each.interval is None:
        return f"no checkpoint before the last is evaluated: {place} is not set"
    if each.interval % every and every % each.interval:
        return (
            f"few checkpoints are evaluated: {place} ({each.interval}) and checkpoint.interval ({every}) do not divide "
            "each other"
        )
    before = recipe.algorithm.offline_steps
    if before % gcd(each.interval, every):
        return (
            "no checkpoint before the last is evaluated: evaluations count from the first step of the policy stage, "
            f"checkpoints from the run's beginning. Make the steps before that stage ({before}) a multiple of "
            f"{gcd(each.interval, every)}"
        )
    return None


def _default(recipe: Recipe) -> EvalFigure:
    return EvalFigure(set=next(iter(recipe.data.eval_sets), None))


def _figure(place: str, figure: EvalFigure, recipe: Recipe) -> Iterator[Fault]:
    """The faults of a key that names a set and one of its figures."""
    sets = recipe.data.eval_sets
    if not sets:
        yield Fault(place, "needs an evaluation set: there is no data.eval")
    elif figure.set not in sets:
        yield Fault(
            f"{place}.set",
            f"is {figure.set!r}, which is no set of data.eval.{nearest(str(figure.set), sets)}",
        )
    elif figure.metric not in (known := sets[figure.set].scale.names()):
        yield Fault(
            f"{place}.metric",
            f"is {figure.metric!r}, which the set {figure.set} does not have: it has {', '.join(known)}",
        )
