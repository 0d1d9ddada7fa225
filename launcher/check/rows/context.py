"""Checks lengths against the engines' context, by SGLang's own rules (`runtime/rollout/engine/context.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from verst.launcher.plan.model_source import model_description, model_folder
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe, training_lengths
from verst.runtime.rollout.engine.context import context_length, longest_prompt, longest_sample


def context_faults(recipe: Recipe, description: dict[str, Any] | None) -> Iterator[Fault]:
    """The faults of prompts and answers that SGLang would refuse or cut. `description` is the model's config.json."""
    context = engine_context(recipe, description)
    if context is None:
        return
    for lengths in training_lengths(recipe):
        if lengths.prompt + lengths.new > longest_sample(context):
            yield Fault(
                lengths.new_key,
                f"is {lengths.new}: {lengths.told} tokens do not fit into the engine's context of {context}, of which "
                f"SGLang gives out {longest_sample(context)}: lower one of them",
            )
        elif lengths.prompt > longest_prompt(context, lengths.new):
            yield Fault(
                lengths.prompt_key,
                f"is {lengths.prompt}: of a context of {context} tokens SGLang takes prompts of at most "
                f"{longest_prompt(context, lengths.new)}: lower it",
            )
    new = recipe.rollout.sampling.max_new_tokens
    for name, each in recipe.data.eval_sets.items():
        place = recipe.data.eval_place(name)
        if longest_prompt(context, each.max_new_tokens or new) < 1:
            yield Fault(
                f"{place}.max_new_tokens" if each.max_new_tokens else "rollout.sampling.max_new_tokens",
                f"is {each.max_new_tokens or new}, which leaves no room for a prompt of {place} in the engine's "
                f"context of {context}: lower it",
            )


def engine_context(recipe: Recipe, description: dict[str, Any] | None) -> int | None:
    """The context of the engines in tokens, None if it is not known. They may serve another folder than is trained."""
    path = recipe.rollout.model_path
    if path is not None and model_folder(path) is not None:
        description = model_description(path)
    return context_length(description or {}, recipe.rollout.sglang)
