"""Faults of how weights cross: transports that do not fit a recipe, and engines whose format is another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_source import model_description, model_folder
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

# What a conversion leaves as it is.
_SAME = (
    "architectures",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_experts",
)
# Formats that SGLang 0.5.17 computes with as they are loaded, at least on Hopper. An engine that does not says so when
# it connects (`rollout/engine_repacks.py`).
_LANDS_AS_CONVERTED = ("fp8",)


def weights_faults(
    recipe: Recipe, description: dict[str, Any] | None, machine: Machine | None
) -> Iterator[Fault]:
    """`description` is the trained model's config.json, None if it is not to be had."""
    weights = recipe.weights
    for key, transports in {"folder": ("disk", "delta"), "local_folder": ("delta",)}.items():
        if getattr(weights, key) is not None and weights.transport not in transports:
            yield Fault(
                f"weights.{key}",
                f"has no meaning with weights.transport {weights.transport}: leave it out, or set the transport to "
                + " or ".join(transports),
            )
    if weights.double_buffer and weights.transport != "reshard":
        yield Fault(
            "weights.double_buffer",
            f"has no meaning with weights.transport {weights.transport}: leave it out, or set the transport to reshard",
        )
    if weights.transport == "delta" and recipe.rollout.nodes_per_engine > 1:
        yield Fault(
            "weights.transport",
            f"is delta, whose copy is on one node, but an engine has {recipe.rollout.nodes_per_engine} "
            "(rollout.nodes_per_engine): set it to disk, broadcast or reshard",
        )
    yield from _engine_format(recipe, description, machine)


def _engine_format(
    recipe: Recipe, description: dict[str, Any] | None, machine: Machine | None
) -> Iterator[Fault]:
    path = recipe.rollout.model_path
    served = description
    if path is not None:
        folder = model_folder(path)
        if folder is None:
            yield Fault(
                "rollout.model_path",
                f"is {path!r}, no folder with a config.json; `verst convert` makes one of model.path",
            )
            return
        served = model_description(str(folder))
        yield from _another_model(recipe, served, description or served)
    quantisation = (served or {}).get("quantization_config") or (served or {}).get("compression_config")
    if served is None or not quantisation:
        return
    place = "model.path" if path is None else "rollout.model_path"
    from verst.sync.formats import engine_fault, of_config

    try:
        format, _ = of_config(quantisation)
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
    if machine is not None and not machine.gpus:
        yield Fault(
            place,
            f"is in {format.name}, which SGLang serves on GPUs alone, and this machine has none: "
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
            f"is {recipe.rollout.model_path!r}, another model than model.path: {'; '.join(others)}. "
            "`verst convert` makes one",
        )
