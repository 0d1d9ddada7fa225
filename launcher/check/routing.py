"""Checks that the model and the engine can provide the routing that `algorithm.routing_replay` needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from verst.launcher.plan.model_source import is_mixture_of_experts
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

# SGLang arguments that load cached tokens back from outside the GPU's memory.
_CACHES_ELSEWHERE = ("enable-hierarchical-cache", "enable-lmcache", "enable-flexkv")


def routing_faults(recipe: Recipe, description: dict[str, Any] | None) -> Iterator[Fault]:
    """The faults of routing replay. `description` is the model's config.json, None if it could not be read."""
    yield from _dense(recipe, description)
    yield from _lost_routing(recipe)
    yield from _mixed_choices(recipe, description or {})


def _dense(recipe: Recipe, description: dict[str, Any] | None) -> Iterator[Fault]:
    replays = recipe.algorithm.routing_replay != "off"
    if replays and description is not None and not is_mixture_of_experts(description):
        yield Fault(
            "algorithm.routing_replay",
            f"is {recipe.algorithm.routing_replay}, but {recipe.model.path} is a dense model (its config.json "
            "has no experts), so there is no routing to replay: set it to off",
        )


def _lost_routing(recipe: Recipe) -> Iterator[Fault]:
    """The fault of a cache outside the GPU: SGLang records experts by cache slot, so a token that is loaded back
    into another slot loses its experts."""
    if recipe.algorithm.routing_replay != "rollout":
        return
    for name, value in recipe.rollout.sglang.items():
        if name.replace("_", "-") in _CACHES_ELSEWHERE and value is not False:
            yield Fault(
                f"rollout.sglang.{name}",
                "loads cached tokens without the experts that computed them, which algorithm.routing_replay "
                "rollout needs: leave it out, or set routing_replay to trainer or off",
            )


def _mixed_choices(recipe: Recipe, description: dict[str, Any]) -> Iterator[Fault]:
    """The fault of speculative decoding with sparse attention.

    SGLang 0.5.17 records experts of the model only, but sparse-attention choices also of the draft. The
    draft's layer for multi-token prediction counts as layer 0 (model_runner.py: init_indexer_capturer has no
    guard).
    """
    sparse = (description.get("text_config") or description).get("index_topk")
    if recipe.algorithm.routing_replay != "rollout" or not sparse:
        return
    for name, value in recipe.rollout.sglang.items():
        if name.replace("_", "-") == "speculative-algorithm" and value:
            yield Fault(
                f"rollout.sglang.{name}",
                f"is {value}: SGLang would return the draft's sparse-attention choices as those of layer 0, and "
                "algorithm.routing_replay is rollout: leave it out, or set routing_replay to trainer or off",
            )
