"""Corrections for tokens that another policy sampled than the old policy of the loss: a factor for each token's loss.

Engine and trainer compute the same weights with other kernels and formats, and answers may come from older weights.
The factor is an importance weight of the old policy against the engine's, ratio = exp(old - rollout), kept within
`algorithm.correction_low` and `correction_high`. It has no gradient. Where the old policy is the engine's
(`trainer.old_logprobs: rollout`, and tokens of older weights with `auto`) it is 1.

The ratio of a token (`token_…`), the product over its sample (`sequence_…`), or the geometric mean over its sample
(`geometric_…`) is either truncated at the bounds or masked, which sets the factor to 0 outside them. With
`algorithm.correction_veto` the factor is 0 for all of a sample that has a token with a ratio below it.
"""

from __future__ import annotations

import math

from torch import Tensor

from verst.runtime.algorithms.losses import bounded_exp
from verst.runtime.algorithms.tokens import TokenBatch


def token_truncated(batch: TokenBatch) -> Tensor:
    """TIS: min(ratio, high) of each token (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"); from below it is bounded by correction_low."""
    return _truncated(batch, _log_ratio(batch))


def token_masked(batch: TokenBatch) -> Tensor:
    """IcePop: the ratio of each token where it is within the bounds, else 0 (arXiv:2510.18855)."""
    return _masked(batch, _log_ratio(batch))


def sequence_truncated(batch: TokenBatch) -> Tensor:
    """The ratio of the whole sample, the product of its tokens' ratios, truncated at the bounds."""
    return _truncated(batch, batch.sequences.sum(_log_ratio(batch)))


def sequence_masked(batch: TokenBatch) -> Tensor:
    """MIS: the ratio of the whole sample where it is within the bounds, else 0 for all its tokens."""
    return _masked(batch, batch.sequences.sum(_log_ratio(batch)))


def geometric_truncated(batch: TokenBatch) -> Tensor:
    """The geometric mean of the ratios of the sample's tokens, truncated at the bounds."""
    return _truncated(batch, batch.sequences.mean(_log_ratio(batch)))


def geometric_masked(batch: TokenBatch) -> Tensor:
    """The geometric mean of the ratios of the sample's tokens where it is within the bounds, else 0."""
    return _masked(batch, batch.sequences.mean(_log_ratio(batch)))


def negative_masked(batch: TokenBatch) -> Tensor:
    """OPSM: 0 for samples with a negative advantage from which the policy has moved away, else 1 (arXiv:2512.02556).

    It has when the geometric mean of rollout / policy is above correction_high, which is exp(delta) of the paper's
    delta. The engine's policy is compared with the one in training, so it also sees stale weights.
    """
    moved = bounded_exp(batch.sequences.mean(batch.rollout_logprobs - batch.logprobs))
    masked = (batch.advantages < 0) & (moved > batch.config.correction_high)
    return _with_veto(batch, 1 - masked.to(moved.dtype))


def _log_ratio(batch: TokenBatch) -> Tensor:
    return batch.old_logprobs - batch.rollout_logprobs


def _with_veto(batch: TokenBatch, factor: Tensor) -> Tensor:
    """The factor, and 0 for samples with a token of a ratio below `correction_veto`."""
    if batch.config.correction_veto is None:
        return factor
    least = -batch.sequences.largest(-_log_ratio(batch))
    return factor * (least >= math.log(batch.config.correction_veto))


def _truncated(batch: TokenBatch, log_ratio: Tensor) -> Tensor:
    bounded = bounded_exp(log_ratio).clamp(batch.config.correction_low, batch.config.correction_high)
    return _with_veto(batch, bounded)


def _masked(batch: TokenBatch, log_ratio: Tensor) -> Tensor:
    ratio = bounded_exp(log_ratio)
    inside = (ratio >= batch.config.correction_low) & (ratio <= batch.config.correction_high)
    return _with_veto(batch, ratio * inside)
