"""Advantages of a prompt group's responses from their rewards. Pure; chosen in the recipe by dotted path."""

from __future__ import annotations

import statistics


def group_normalised(rewards: list[float]) -> list[float]:
    """(r - mean) / (std + 1e-6) with the population standard deviation: GRPO (arXiv:2402.03300, section 4.1.2)."""
    mean = statistics.fmean(rewards)
    std = statistics.pstdev(rewards, mean)
    return [(r - mean) / (std + 1e-6) for r in rewards]


def group_centred(rewards: list[float]) -> list[float]:
    """r - mean: without the division, which weighs easy and hard prompts up (Dr. GRPO, arXiv:2503.20783)."""
    mean = statistics.fmean(rewards)
    return [r - mean for r in rewards]


def leave_one_out(rewards: list[float]) -> list[float]:
    """r_i minus the mean of the others: RLOO (arXiv:2402.14740). A group of one has no baseline: advantage 0."""
    if len(rewards) == 1:
        return [0.0]
    total = sum(rewards)
    return [r - (total - r) / (len(rewards) - 1) for r in rewards]
