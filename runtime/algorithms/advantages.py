"""Computes the advantages of a step's samples from the metadata of its groups. The recipe chooses a function by path.

An advantage function gets all prompt groups of the step and returns one advantage for each sample, group by group.
`per_group` makes one of a function of a single group's rewards. No sample is left out: one with an advantage of 0 has
no policy gradient.

All take finite rewards of any size. Where all rewards of a group are equal, every advantage relative to the group is
exactly 0: rounding in the mean must not make a group without a signal look like one with a small one. Only the
functions that normalise over the step may move it from 0 again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the check of a recipe looks at names here, and needs no numpy
    from verst.runtime.algorithms.config import AlgorithmConfig
    from verst.runtime.messages.sample import GroupMeta


def per_group(
    function: Callable[[list[float]], Sequence[float]],
) -> Callable[[Sequence[GroupMeta]], list[list[float]]]:
    """Decorator: an advantage function of one group's rewards becomes one of the step's groups."""

    @functools.wraps(function)
    def of_step(groups: Sequence[GroupMeta]) -> list[list[float]]:
        return [list(function(list(group.rewards))) for group in groups]

    return of_step


@per_group
def group_normalised(rewards: list[float]) -> list[float]:
    """GRPO: (r - mean) / (std + 1e-6), with the population standard deviation (arXiv:2402.03300, section 4.1.2)."""
    return _normalised(rewards, len(rewards))


@per_group
def group_normalised_sample(rewards: list[float]) -> list[float]:
    """GRPO with the sample standard deviation, which divides by n - 1, as in verl, TRL and Miles.

    Its advantages are smaller than those of `group_normalised` by sqrt((n - 1) / n): 6.5 % at n = 8. A group of one
    has the advantage 0.
    """
    return _normalised(rewards, len(rewards) - 1)


@per_group
def group_centred(rewards: list[float]) -> list[float]:
    """Dr. GRPO: r - mean (arXiv:2503.20783). Dividing by the spread would give easy and hard prompts more weight."""
    differences, exponent = _differences(rewards)
    return [_times_power(d, exponent) for d in differences]


@per_group
def leave_one_out(rewards: list[float]) -> list[float]:
    """RLOO: r_i minus the mean of the others (arXiv:2402.14740). A group of one has no baseline; its advantage is 0."""
    count = len(rewards)
    differences, exponent = _differences(rewards)
    # The mean of the others is (n * mean - r_i) / (n - 1).
    return [_times_power(d * count / max(count - 1, 1), exponent) for d in differences]


@per_group
def mean_normalised(rewards: list[float]) -> list[float]:
    """MaxRL: (r - mean) / mean for rewards of 0 and 1, and 0 where none is 1 (arXiv:2602.02710).

    In expectation its gradient is that of the pass rates at 1 to n, the truncated maximum likelihood. Raises
    ValueError for a negative reward, with which the mean is no rate.
    """
    if min(rewards) < 0:
        raise ValueError(f"needs rewards of 0 and above, and the group has {min(rewards):g}")
    differences, exponent = _differences(rewards)
    mean = math.fsum(math.ldexp(r, -exponent) for r in rewards) / len(rewards)
    return [d / mean if d else 0.0 for d in differences]


@per_group
def _of_unequal(rewards: list[float]) -> list[float]:
    return [float(min(rewards) != max(rewards))] * len(rewards)


def group_centred_rescaled(groups: Sequence[GroupMeta]) -> list[list[float]]:
    """GPG: r - mean, times B / (B - M): of the step's B samples, M are in groups whose rewards are all equal
    (arXiv:2504.02546, with F_norm = 1). Use it with the loss `reinforce`.

    Samples without a signal then do not make the step smaller.
    """
    unequal = [flag for flags in _of_unequal(groups) for flag in flags]
    scale = len(unequal) / max(1.0, sum(unequal))
    return [[a * scale for a in advantages] for advantages in group_centred(groups)]


def pass_at_k(groups: Sequence[GroupMeta], k: int = 2) -> list[list[float]]:
    """PKPO: k times what the answer adds to the best reward of k answers: the mean of max(r, m) - m, where m is the
    best of k - 1 others, over all choices of them (arXiv:2505.15201, eq. 33). `algorithm.pass_k` is k, 2 or more.

    Averaged over the group, A * grad log p is an unbiased estimate of the gradient of the expected best of k; for
    rewards of 0 and 1 that is pass@k. A group that has fewer than k samples left, because a sample filter dropped
    others, cannot tell: its advantages are 0.
    """
    return [_added_to_best(list(group.rewards), k) for group in groups]


def decoupled(groups: Sequence[GroupMeta], weights: Mapping[str, float] | None = None) -> list[list[float]]:
    """GDPO: each part of the reward is normalised in its group as in `group_normalised`; the weighted sums of them are
    normalised over the step's samples (arXiv:2601.05242). `algorithm.score_weights` has the parts and their weights.

    The parts are those of the reward's `Score`. By default all count, with a weight of 1. Raises ValueError where a
    sample does not have a part.
    """
    weights = weights or {name: 1.0 for group in groups for name in group.scores}
    if not weights:
        raise ValueError("the rewards have no parts: the reward function must return a Score with parts")
    sums = [a for group in groups for a in _sum_of_parts(group, weights)]
    return _split(_whitened(sums, [1] * len(sums)), groups)


def length_weighted(groups: Sequence[GroupMeta]) -> list[list[float]]:
    """OPO: r minus the group's mean weighted by the number of trained tokens (arXiv:2505.23585)."""
    return [_minus_weighted_mean(group.rewards, group.trained_tokens) for group in groups]


def step_normalised(groups: Sequence[GroupMeta]) -> list[list[float]]:
    """REINFORCE++: (r - mean) / (std + 1e-6) over all samples of the step, each counted by its trained tokens
    (arXiv:2501.03262).

    It has no baseline of the group, so `samples_per_prompt: 1` is possible.
    """
    rewards = [reward for group in groups for reward in group.rewards]
    return _split(_whitened(rewards, _tokens(groups)), groups)


def step_normalised_baseline(groups: Sequence[GroupMeta]) -> list[list[float]]:
    """REINFORCE++ with baseline: r minus the group's mean, and that normalised as in `step_normalised`
    (arXiv:2501.03262).

    So where long answers are better or worse than short ones, a group of equal rewards has an advantage, too: 0 minus
    the mean over the step's tokens.
    """
    centred = [a for advantages in group_centred(groups) for a in advantages]
    return _split(_whitened(centred, _tokens(groups)), groups)


@per_group
def gae(rewards: list[float]) -> list[float]:
    """PPO: generalised advantage estimation with a critic (arXiv:1506.02438, eq. 16; PPO: arXiv:1707.06347).

    This function hands on each answer's reward. The trainer's ranks make an advantage for each token of it
    (`returns.py`), with the values of `algorithm.critic`, which this needs. There is no baseline of the group.
    """
    return rewards


# The functions whose baseline is the rest of the group: a group of one teaches nothing.
RELATIVE_TO_GROUP = tuple(
    f"{__name__}:{name}"
    for name in (
        "group_normalised",
        "group_normalised_sample",
        "group_centred",
        "leave_one_out",
        "mean_normalised",
        "group_centred_rescaled",
        "length_weighted",
        "step_normalised_baseline",
        "decoupled",
    )
)


def shaped(
    advantages: Sequence[Sequence[float]], groups: Sequence[GroupMeta], config: AlgorithmConfig
) -> list[list[float]]:
    """The advantages after `algorithm.advantage_whiten` and `advantage_clip`, which act on those of any function.

    Whitened: (a - mean) / (std + 1e-6) over the step's samples, each counted by its trained tokens; all 0 where all
    that have such tokens are equal. Clipped: within +-advantage_clip. With a critic the ranks do that to each token's
    advantage, and nothing changes here.
    """
    if config.critic is not None:
        return [list(of_group) for of_group in advantages]
    values = [a for of_group in advantages for a in of_group]
    if config.advantage_whiten:
        values = _whitened(values, _tokens(groups))
    if (bound := config.advantage_clip) is not None:
        values = [max(-bound, min(bound, a)) for a in values]
    return _split(values, groups)


def options_of(config: AlgorithmConfig) -> tuple[Any, ...]:
    """What the recipe's advantage function gets besides the groups: the options of a bundled one, if it has any."""
    if config.advantage == f"{__name__}:pass_at_k":
        return (config.pass_k,)
    if config.advantage == f"{__name__}:decoupled":
        return (config.score_weights,)
    return ()


def _normalised(rewards: list[float], divisor: int) -> list[float]:
    """(r - mean) / (deviation + 1e-6), with the deviation's square summed over the group and divided by `divisor`."""
    differences, exponent = _differences(rewards)
    deviation = math.sqrt(math.fsum(d * d for d in differences) / max(divisor, 1))
    epsilon = math.ldexp(1e-6, -exponent)
    return [d / (deviation + epsilon) for d in differences]


def _sum_of_parts(group: GroupMeta, weights: Mapping[str, float]) -> list[float]:
    """The weighted sum of the normalised parts of the group's rewards."""
    sums = [0.0] * len(group.rewards)
    for name, weight in weights.items():
        part = group.scores.get(name, [math.nan])
        if any(math.isnan(score) for score in part):
            known = ", ".join(sorted(group.scores)) or "none"
            raise ValueError(f"a sample of group {group.id} has no part {name!r}; the group's parts: {known}")
        sums = [s + weight * a for s, a in zip(sums, _normalised(list(part), len(part)), strict=True)]
    return sums


def _added_to_best(rewards: list[float], k: int) -> list[float]:
    """k times the mean of max(r_i, m) - m over all m, the best of k - 1 of the other rewards."""
    count = len(rewards)
    found = [0.0] * count
    if count < k:
        return found
    order = sorted(range(count), key=rewards.__getitem__)
    for place, index in enumerate(order):
        # The best of a choice of the others is at `best` if the other k - 2 are below it. Only a worse best counts.
        found[index] = k * math.fsum(
            (rewards[index] - rewards[order[best]]) * (math.comb(best, k - 2) / math.comb(count - 1, k - 1))
            for best in range(k - 2, place)
        )
    return found


def _differences(rewards: list[float]) -> tuple[list[float], int]:
    """Returns (r - mean) / 2**exponent of each reward, and the exponent, so that no sum or square overflows.

    A power of two changes no digit. The exponent is 0 for rewards below 1.
    """
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards), 0
    exponent = max(0, math.frexp(max(abs(r) for r in rewards))[1])
    scaled = [math.ldexp(r, -exponent) for r in rewards]
    mean = math.fsum(scaled) / len(scaled)
    return [r - mean for r in scaled], exponent


def _times_power(value: float, exponent: int) -> float:
    """value * 2**exponent; infinite where that is too large for a float."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def _minus_weighted_mean(rewards: Sequence[float], weights: Sequence[int]) -> list[float]:
    """r - sum(w r) / sum(w); the plain mean where all weights are 0."""
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    weights = weights if any(weights) else [1] * len(rewards)
    total = sum(weights)
    mean = math.fsum(r * (w / total) for r, w in zip(rewards, weights, strict=True))
    return [r - mean for r in rewards]


def _whitened(values: list[float], counts: list[int]) -> list[float]:
    """(v - mean) / (std + 1e-6), each value counted `counts` times; 0 where all that count are equal."""
    counts = counts if any(counts) else [1] * len(values)
    counted = [v for v, c in zip(values, counts, strict=True) if c]
    if min(counted) == max(counted):
        return [0.0] * len(values)
    scale = max(abs(v) for v in values)  # so that no square overflows
    total = sum(counts)
    mean = math.fsum(v / scale * (c / total) for v, c in zip(values, counts, strict=True))
    square = math.fsum((v / scale - mean) ** 2 * (c / total) for v, c in zip(values, counts, strict=True))
    return [(v / scale - mean) / (math.sqrt(square) + 1e-6 / scale) for v in values]


def _tokens(groups: Sequence[GroupMeta]) -> list[int]:
    return [n for group in groups for n in group.trained_tokens]


def _split(values: list[float], groups: Sequence[GroupMeta]) -> list[list[float]]:
    """Values of all samples of the step, in lists by group."""
    rest = iter(values)
    return [[next(rest) for _ in group.rewards] for group in groups]
