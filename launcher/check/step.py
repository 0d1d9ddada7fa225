"""Checks the samples of a training step: how many there are, how stale and how long they may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from verst.launcher.check.rows.context import context_faults
from verst.launcher.plan.parallelism import argument, megatron_parallelism
from verst.launcher.plan.plan import world_size
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe, has_reward, training_lengths
from verst.runtime.algorithms.advantages import RELATIVE_TO_GROUP
from verst.runtime.algorithms.config import AlgorithmConfig


def step_faults(recipe: Recipe, description: dict[str, Any] | None) -> Iterator[Fault]:
    """The faults of a training step. `description` is the model's config.json, None if it could not be read."""
    yield from _batch(recipe)
    yield from _correction(recipe)
    yield from _staleness(recipe.algorithm)
    yield from _lengths(recipe)
    if recipe.starts_engines:
        yield from context_faults(recipe, description)


def _batch(recipe: Recipe) -> Iterator[Fault]:
    algorithm = recipe.algorithm
    dp = megatron_parallelism(recipe.trainer.megatron, world_size(recipe)).dp
    samples = algorithm.prompts_per_step * algorithm.samples_per_prompt
    if samples < dp:
        yield Fault(
            "algorithm.prompts_per_step",
            f"is {algorithm.prompts_per_step}: {algorithm.prompts_per_step} x samples_per_prompt "
            f"{algorithm.samples_per_prompt} = {samples} samples leave some of the {dp} data-parallel ranks without "
            f"work; a step needs at least {dp} samples",
        )
    yield from _mini_batches(algorithm, dp)
    taught_alone = algorithm.teacher is not None and not has_reward(recipe)
    if algorithm.samples_per_prompt == 1 and algorithm.advantage in RELATIVE_TO_GROUP and not taught_alone:
        yield Fault(
            "algorithm.samples_per_prompt",
            f"is 1: {algorithm.advantage.partition(':')[2]} compares a sample with its group, so its advantage would "
            "always be 0 and nothing would be learned; must be at least 2",
        )


def _mini_batches(algorithm: AlgorithmConfig, dp: int) -> Iterator[Fault]:
    count, prompts = algorithm.mini_batches, algorithm.prompts_per_step
    if prompts % count:
        yield Fault(
            "algorithm.mini_batches",
            f"is {count}, which does not divide prompts_per_step {prompts}: mini-batches have equally many whole "
            "prompt groups",
        )
    elif count > 1 and (samples := prompts // count * algorithm.samples_per_prompt) < dp:
        yield Fault(
            "algorithm.mini_batches",
            f"is {count}: the {samples} samples of a mini-batch leave some of the {dp} data-parallel ranks without "
            "work",
        )


def _correction(recipe: Recipe) -> Iterator[Fault]:
    path = recipe.algorithm.correction or ""
    name = path.removeprefix("verst.runtime.algorithms.corrections:")
    if name != path and name != "negative_masked" and recipe.trainer.old_logprobs == "rollout":
        yield Fault(
            "algorithm.correction",
            f"is {name}, but trainer.old_logprobs is rollout: the old policy is the engine's, so its importance ratio "
            "is always 1; leave trainer.old_logprobs out",
        )


def _staleness(algorithm: AlgorithmConfig) -> Iterator[Fault]:
    bound = algorithm.max_staleness
    wrong = {
        "sync": bound not in (None, 0)
        and "every group is trained on by the version that generated it: set it to 0, or leave it out",
        "one_step_off": bound == 0 and "groups are one version old: set it to at least 1, or use mode sync",
        "fully_async": bound == 0
        and "groups may be older than the weights: set it to at least 1, or use mode sync",
    }[algorithm.mode]
    if wrong:
        yield Fault("algorithm.max_staleness", f"is {bound}, but in mode {algorithm.mode} {wrong}")


def _lengths(recipe: Recipe) -> Iterator[Fault]:
    limit = recipe.trainer.max_tokens_per_microbatch
    longest = max(training_lengths(recipe), key=lambda lengths: lengths.prompt + lengths.new)
    most = longest.prompt + longest.new
    multiple = _pad_multiple(recipe)
    padded = most + -most % multiple
    if padded > limit:
        padding = (
            f"; padded to a multiple of {multiple}, which tensor and context parallelism need: {padded}"
            if multiple > 1
            else ""
        )
        yield Fault(
            "trainer.max_tokens_per_microbatch",
            f"is {limit}, less than the longest possible sample ({longest.told}{padding}), which could never be "
            "trained on",
        )


def _pad_multiple(recipe: Recipe) -> int:
    """The number of which the trainer makes the lengths of sequences a multiple (`TrainedModel.pad_multiple`)."""
    megatron = recipe.trainer.megatron
    sizes = megatron_parallelism(megatron, world_size(recipe))
    context = 2 * sizes.cp if sizes.cp > 1 else 1
    return context * (sizes.tp if argument(megatron, "sequence-parallel") is True else 1)
