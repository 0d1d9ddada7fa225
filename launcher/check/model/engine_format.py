"""Checks the weight format of the engines' model folder. Imports torch, so it runs in a child (`parsers.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.check.model.description import description_if_any
from verst.launcher.plan.model_source import quantisation
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.sync.formats import engine_fault, of_config

# Formats whose tensors SGLang 0.5.17 does not repack after loading, at least on Hopper. An engine that does
# repack them reports it when it connects (`runtime/rollout/inside_sglang/repacks.py`).
_LANDS_AS_CONVERTED = ("fp8",)


def engine_format_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults of the engines' format. A missing folder gives none: another check reports it."""
    place = "rollout.model_path"
    if recipe.rollout.model_path is None:
        return
    served = description_if_any(recipe.rollout.model_path)
    if served is None or not quantisation(served):
        return
    try:
        format, _ = of_config(quantisation(served))
    except ValueError as error:
        yield Fault(place, f"has a quantization_config that Verst cannot convert weights to: {error}")
        return
    if fault := engine_fault(format, served):
        yield Fault(place, f"is in {format.name}: {fault}")
    if recipe.weights.transport == "reshard" and format.name not in _LANDS_AS_CONVERTED:
        yield Fault(
            "weights.transport",
            f"is reshard, which writes converted weights straight into the engines' parameters, but SGLang repacks "
            f"{format.name}, the format of the engines' folder ({place}), after loading: set the transport to "
            "broadcast, disk or delta, or use fp8",
        )
    if recipe.model.dtype != "bfloat16":
        yield Fault(
            "model.dtype",
            f"is {recipe.model.dtype}, but the engines' folder ({place}) is in {format.name} and has its "
            "unquantised tensors in bfloat16: set it to bfloat16",
        )
