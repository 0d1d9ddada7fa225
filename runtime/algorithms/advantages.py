"""Computes the advantages of a prompt group's responses from their rewards. The recipe chooses a function by path."""

from __future__ import annotations

import statistics


def group_normalised(rewards: list[float]) -> list[float]:
    """GRPO: (r - mean) / (std + 1e-6), with the population standard deviation (arXiv:2402.03300, section 4.1.2)."""
    mean = statistics.fmean(rewards)
    std = statistics.pstdev(rewards, mean)
    return [(r - mean) / (std + 1e-6) for r in rewards]


def group_centred(rewards: list[float]) -> list[float]:
    """Dr. GRPO: r - mean (arXiv:2503.20783). Dividing by the spread would give easy and hard prompts more weight."""
    mean = statistics.fmean(rewards)
    return [r - mean for r in rewards]


def leave_one_out(rewards: list[float]) -> list[float]:
    """RLOO: r_i minus the mean of the others (arXiv:2402.14740). A group of one has no baseline; its advantage is 0."""
    if len(rewards) == 1:
        return [0.0]
    total = sum(rewards)
    return [r - (total - r) / (len(rewards) - 1) for r in rewards]
