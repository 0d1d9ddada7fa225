"""What each token of an answer was worth, from rewards and a critic's values: pure functions of one sample.

A sample's trained tokens are its actions, one after another. Tokens that are not trained, such as what a tool said
between two turns, are no actions: the step from the last token of a turn leads to the first token of the next, and
`gamma` and `lam` count trained tokens alone. The value of an action is that of the state before it, and after the last
one nothing follows: its value is 0.

Sums run in float64.
"""

from __future__ import annotations

import numpy as np


def gae(values: np.ndarray, rewards: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimation, float64 [T] (arXiv:1506.02438, eqs. 11, 12 and 16).

    A_t = delta_t + gamma * lam * A_{t+1}, where delta_t = r_t + gamma * V_{t+1} - V_t. With `lam` 1 that is the
    discounted return less the value; with 0 it is delta_t alone. `values` and `rewards` are [T], of the trained tokens.
    """
    found = np.zeros(len(values))
    advantage = following = 0.0
    backwards = zip(values[::-1].tolist(), rewards[::-1].tolist(), strict=True)
    for back, (value, reward) in enumerate(backwards, 1):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        found[-back] = advantage
        following = value
    return found


def discounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """The discounted returns, float64 [T]: R_t = r_t + gamma * R_{t+1}. `rewards` are [T]."""
    return gae(np.zeros(len(rewards)), rewards, gamma, 1.0)


def value_targets(values: np.ndarray, rewards: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """What the critic is trained towards, float64 [T]: the advantage of `gae` plus the value.

    With `lam` 1 the values cancel, and the target is the discounted return.
    """
    return discounted(rewards, gamma) if lam == 1 else gae(values, rewards, gamma, lam) + values
