"""Checks weight sync: that the transport fits the recipe, and that the engines have a folder that they can serve.

`served_model.py` checks whether it is the trained model, and `engine_format.py` its format.
"""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_source import model_description, model_folder, quantisation
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe


def weights_faults(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """The faults of weight sync."""
    weights = recipe.weights
    for key, transports in {"folder": ("disk", "delta"), "local_folder": ("delta",)}.items():
        if getattr(weights, key) is not None and weights.transport not in transports:
            yield Fault(
                f"weights.{key}",
                f"has no effect with weights.transport {weights.transport}: leave it out, or set the transport to "
                + " or ".join(transports),
            )
    if weights.double_buffer and weights.transport != "reshard":
        yield Fault(
            "weights.double_buffer",
            f"has no effect with weights.transport {weights.transport}: leave it out, or set the transport to reshard",
        )
    if weights.transport == "delta" and recipe.rollout.nodes_per_engine > 1:
        yield Fault(
            "weights.transport",
            f"is delta, which keeps its copy on one node, but an engine has {recipe.rollout.nodes_per_engine} nodes "
            "(rollout.nodes_per_engine): set it to disk, broadcast or reshard",
        )
    yield from _engine_folder(recipe, machine)


def _engine_folder(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    path = recipe.rollout.model_path
    if path is None:
        return
    folder = model_folder(path)
    if folder is None:
        yield Fault(
            "rollout.model_path",
            f"is {path!r}, which is not a folder with a config.json; `verst convert` makes one from model.path",
        )
        return
    method = quantisation(model_description(str(folder))).get("quant_method")
    if method and machine is not None and not machine.gpus:
        yield Fault(
            "rollout.model_path",
            f"is in the format {method}, which SGLang serves only on GPUs, and this machine has none: "
            "leave rollout.model_path out here",
        )
