"""Checks that the trainer can compute the log-probabilities of what the engines sample (`rollout.sampling`)."""

from __future__ import annotations

from collections.abc import Iterator

from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

_OFF = {"top_p": 1, "top_k": -1, "min_p": 0}
# SGLang arguments that change what is sampled, but not the log-probabilities that it reports: name -> when it does not.
_OFF_IN_SGLANG = {
    "preferred-sampling-params": None,
    "speculative-accept-threshold-single": 1,
    "speculative-accept-threshold-acc": 1,
}


def sampling_faults(recipe: Recipe) -> Iterator[Fault]:
    """The faults in the sampling of training answers."""
    sampling = recipe.rollout.sampling
    if sampling.greedy:
        samples = recipe.algorithm.samples_per_prompt
        same = f", and all {samples} samples of a prompt would be the same" if samples > 1 else ""
        yield Fault(
            "rollout.sampling.temperature",
            f"is {sampling.temperature:g}: a greedy policy has no gradient{same}; must be greater than 0",
        )
    for name, value in sampling.truncations.items():
        yield Fault(
            f"rollout.sampling.{name}",
            f"is {value:g}: the engine reports log-probabilities of the whole distribution, not of the truncated one, "
            f"so the policy ratio would be wrong; must be {_OFF[name]} in training (data.eval has its own {name})",
        )
    for name, given in recipe.rollout.sglang.items():
        flag = name.replace("_", "-")
        if flag in _OFF_IN_SGLANG and given != _OFF_IN_SGLANG[flag]:
            yield Fault(
                f"rollout.sglang.{name}",
                f"is {given}: it changes what SGLang samples, but not the log-probabilities that it reports, so the "
                "policy ratio would be wrong: leave it out, and set what you need in rollout.sampling",
            )
