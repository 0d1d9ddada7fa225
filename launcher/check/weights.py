"""Checks weight sync: that the transport fits the recipe, and that the engines serve the trained model.

`engine_format.py` checks the format that the engines serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_source import model_description, model_folder, quantisation
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

# The keys of config.json that a conversion does not change.
_SAME = (
    "architectures",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_experts",
)


def weights_faults(
    recipe: Recipe, description: dict[str, Any] | None, machine: Machine | None
) -> Iterator[Fault]:
    """The faults of weight sync. `description` is the trained model's config.json, None if it could not be read."""
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
    yield from _engine_folder(recipe, description, machine)


def _engine_folder(
    recipe: Recipe, description: dict[str, Any] | None, machine: Machine | None
) -> Iterator[Fault]:
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
    served = model_description(str(folder))
    yield from _another_model(recipe, served, description or served)
    method = quantisation(served).get("quant_method")
    if method and machine is not None and not machine.gpus:
        yield Fault(
            "rollout.model_path",
            f"is in the format {method}, which SGLang serves only on GPUs, and this machine has none: "
            "leave rollout.model_path out here",
        )


def _another_model(recipe: Recipe, served: dict[str, Any], trained: dict[str, Any]) -> Iterator[Fault]:
    others = [
        f"{key} {served.get(key)} where model.path has {trained.get(key)}"
        for key in _SAME
        if served.get(key) != trained.get(key)
    ]
    if others:
        yield Fault(
            "rollout.model_path",
            f"is {recipe.rollout.model_path!r}, which is a different model from model.path: {'; '.join(others)}. "
            "`verst convert` makes a folder from model.path",
        )
