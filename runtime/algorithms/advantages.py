"""Computes the advantages of a prompt group's responses from their rewards. The recipe chooses a function by path.

All take finite rewards of any size. Where all rewards of a group are equal, every advantage is exactly 0: rounding in
the mean must not make a group without a signal look like one with a small one.
"""

from __future__ import annotations

import math


def group_normalised(rewards: list[float]) -> list[float]:
    """GRPO: (r - mean) / (std + 1e-6), with the population standard deviation (arXiv:2402.03300, section 4.1.2)."""
    return _normalised(rewards, len(rewards))


def group_normalised_sample(rewards: list[float]) -> list[float]:
    """GRPO with the sample standard deviation, which divides by n - 1, as in verl, TRL and Miles.

    Its advantages are smaller than those of `group_normalised` by sqrt((n - 1) / n): 6.5 % at n = 8. A group of one
    has the advantage 0.
    """
    return _normalised(rewards, len(rewards) - 1)


def group_centred(rewards: list[float]) -> list[float]:
    """Dr. GRPO: r - mean (arXiv:2503.20783). Dividing by the spread would give easy and hard prompts more weight."""
    differences, exponent = _differences(rewards)
    return [_times_power(d, exponent) for d in differences]


def leave_one_out(rewards: list[float]) -> list[float]:
    """RLOO: r_i minus the mean of the others (arXiv:2402.14740). A group of one has no baseline; its advantage is 0."""
    count = len(rewards)
    differences, exponent = _differences(rewards)
    # The mean of the others is (n * mean - r_i) / (n - 1).
    return [_times_power(d * count / max(count - 1, 1), exponent) for d in differences]


# The functions whose baseline is the rest of the group: a group of one teaches nothing.
RELATIVE_TO_GROUP = tuple(
    f"{f.__module__}:{f.__name__}"
    for f in (group_normalised, group_normalised_sample, group_centred, leave_one_out)
)


def _normalised(rewards: list[float], divisor: int) -> list[float]:
    """(r - mean) / (deviation + 1e-6), with the deviation's square summed over the group and divided by `divisor`."""
    differences, exponent = _differences(rewards)
    deviation = math.sqrt(math.fsum(d * d for d in differences) / max(divisor, 1))
    epsilon = math.ldexp(1e-6, -exponent)
    return [d / (deviation + epsilon) for d in differences]


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
