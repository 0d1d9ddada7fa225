"""Faults of the format that the engines' model folder is in. Imports torch, so it runs in a child (`parsers.py`)."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.plan.model_source import ModelMissingError, model_description, quantisation
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe
from verst.sync.formats import engine_fault, of_config

# Formats that SGLang 0.5.17 computes with as they are loaded, at least on Hopper. An engine that does not says so when
# it connects (`rollout/engine_repacks.py`).
_LANDS_AS_CONVERTED = ("fp8",)


def engine_format_faults(recipe: Recipe) -> Iterator[Fault]:
    """Nothing for a folder that is missing: that is reported already."""
    place = "model.path" if recipe.rollout.model_path is None else "rollout.model_path"
    try:
        served = model_description(recipe.rollout.model_path or recipe.model.path)
    except ModelMissingError:
        return
    if not quantisation(served):
        return
    try:
        format, _ = of_config(quantisation(served))
    except ValueError as error:
        yield Fault(place, f"has a quantization_config that weights cannot be sent in: {error}")
        return
    if fault := engine_fault(format, served):
        yield Fault(place, f"is in {format.name}: {fault}")
    if recipe.weights.transport == "reshard" and format.name not in _LANDS_AS_CONVERTED:
        yield Fault(
            "weights.transport",
            f"is reshard, which writes what was converted straight into the engines' parameters, but SGLang repacks "
            f"{format.name}, the format of the engines' folder ({place}), after loading it: set the transport to "
            "broadcast, disk or delta; with reshard fp8 goes",
        )
    if recipe.model.dtype != "bfloat16":
        yield Fault(
            "model.dtype",
            f"is {recipe.model.dtype}, but the engines' folder ({place}) is in {format.name}, "
            "whose other tensors are bfloat16: set it to bfloat16",
        )
