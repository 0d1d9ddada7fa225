"""How the rewards of a step are spread: quantiles, a histogram, and the groups that teach nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from verst.runtime.messages.sample import GroupMeta

RIGHT, WRONG = 1.0, 0.0  # a group is all right from 1 on and all wrong up to 0, as the bundled rewards score
_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
_MOST_VALUES = 24  # with more different rewards than this, they are counted in bins
_BINS = 20


def reward_figures(groups: Sequence[GroupMeta]) -> dict[str, Any]:
    """The figures of a step's rewards.

    `solved_groups` is the share of groups whose answers all have the same reward; `groups_all_right` and
    `groups_all_wrong` are the shares whose answers all have rewards of at least 1, and of at most 0. Rewards on
    another scale need not have either. `reward_spread` is the mean over the groups of the standard deviation within
    the group (of the population).
    """
    rewards = np.array([r for g in groups for r in g.rewards], np.float64)
    count = len(groups)
    return {
        "reward": float(rewards.mean()),
        "solved_groups": sum(min(g.rewards) == max(g.rewards) for g in groups) / count,
        "groups_all_right": sum(min(g.rewards) >= RIGHT for g in groups) / count,
        "groups_all_wrong": sum(max(g.rewards) <= WRONG for g in groups) / count,
        "reward_spread": sum(float(np.std(g.rewards)) for g in groups) / count,
        "rewards": {name: float(np.quantile(rewards, at)) for name, at in _QUANTILES.items()},
        "reward_histogram": histogram(rewards),
    }


def histogram(rewards: np.ndarray) -> dict[str, list[float]]:
    """Counts rewards: each value, or equal bins if there are many values. `from` and `to` are the bins' ends."""
    values = sorted(Counter(rewards.tolist()).items())
    if len(values) <= _MOST_VALUES:
        return {
            "from": [value for value, _ in values],
            "to": [value for value, _ in values],
            "count": [count for _, count in values],
        }
    counts, edges = np.histogram(rewards, bins=_BINS)
    return {"from": edges[:-1].tolist(), "to": edges[1:].tolist(), "count": counts.tolist()}
