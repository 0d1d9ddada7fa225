"""Which tokens of an update the losses `clip_cov` and `kl_cov` treat apart (arXiv:2505.22617): pure functions.

The covariance of a token is (log p - mean of log p) * (A - mean of A), with means over all trained tokens of the update
(section 4.2). Tokens with a high one take the most entropy from the policy. A choice among all tokens of an update must
not depend on how they are split over micro-batches and ranks. So it is made once, before the update:

- log p is that of the old policy, which is known then. The paper's code takes the policy in training, which is the same
  in a step's first update, and takes means and choice within each micro-batch.
- Each token has a draw of its own, a hash of the seed and of its place. The tokens with the lowest draws are a random
  choice, and every split makes the same one.

Sums run in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from verst.runtime.algorithms.config import AlgorithmConfig

_LOSSES = {f"verst.runtime.algorithms.losses:{name}": name for name in ("clip_cov", "kl_cov")}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def needs_covariance(algorithm: AlgorithmConfig) -> bool:
    """Whether the recipe's loss looks at the signals "covariance" and "covariance_chosen"."""
    return algorithm.loss in _LOSSES


def covariances(
    logprobs: np.ndarray, advantages: np.ndarray, mean_logprob: float, mean_advantage: float
) -> np.ndarray:
    """The covariance of each token, float64 [n]."""
    return (logprobs.astype(np.float64) - mean_logprob) * (advantages.astype(np.float64) - mean_advantage)


def draws(key: Sequence[int], places: np.ndarray) -> np.ndarray:
    """A random number for each token, uint64 [n], from the key of the whole choice and the token's own place.

    `key` are integers, such as seed, step and update; `places` int64 [n, k], different for each token.
    """
    found = np.zeros(len(places), np.uint64)
    columns = [np.full(len(places), number, np.int64) for number in key] + list(places.T)
    for column in columns:
        found = _mixed(found ^ column.astype(np.int64).view(np.uint64))
    return found


@dataclass(frozen=True)
class Candidates:
    """Tokens to choose from: the highest scores come first, and of equal ones the lowest draws."""

    scores: np.ndarray  # float64 [n]
    draws: np.ndarray  # uint64 [n]; they also say which token it is

    @classmethod
    def of(cls, algorithm: AlgorithmConfig, covariances: np.ndarray, draws: np.ndarray) -> Self:
        """The candidates of the recipe's loss: for `clip_cov` those within the bounds, with equal scores."""
        if _LOSSES[algorithm.loss] == "kl_cov":
            return cls(covariances, draws)
        inside = (covariances > algorithm.cov_low) & (covariances < algorithm.cov_high)
        return cls(np.zeros(int(inside.sum())), draws[inside])

    def first(self, count: int) -> Self:
        """The first `count` of them, in order; all if there are fewer."""
        order = np.lexsort((self.draws, -self.scores))[:count]
        return type(self)(self.scores[order], self.draws[order])


def _mixed(state: np.ndarray) -> np.ndarray:
    """The next output of the generator SplitMix64 (Steele et al., OOPSLA 2014), uint64 [n]."""
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
