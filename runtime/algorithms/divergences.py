"""Estimates of KL(policy || other) at sampled tokens: fp32 [n], [n] -> [n]. The recipe chooses one (`algorithm.kl`).

`logprobs` are those of the policy, which sampled the tokens; gradients flow through them. The three estimates are
J. Schulman's (http://joschu.net/blog/kl-approx.html). Log-ratios are bounded by 20 before exp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verst.runtime.algorithms.losses import LOG_RATIO_BOUND


def k1(logprobs: Tensor, other: Tensor) -> Tensor:
    """log p - log q: unbiased, of either sign. Its own gradient is zero in expectation: use it with `kl_importance`."""
    return logprobs - other


def k2(logprobs: Tensor, other: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, never negative. In expectation its gradient is that of KL(policy || other)."""
    return (logprobs - other).square() / 2


def k3(logprobs: Tensor, other: Tensor) -> Tensor:
    """r - 1 - log r, with r = q / p: unbiased and never negative.

    Its gradient is not that of KL(policy || other): the gradient of log p is 1 - r, whose mean over samples of the
    policy is the gradient of KL(other || policy).

    log r is bounded by 20, beyond which the gradient is zero. Far below -20 the gradient remains 1.
    """
    log_ratio = (other - logprobs).clamp(max=LOG_RATIO_BOUND)
    return torch.expm1(log_ratio.clamp(min=-LOG_RATIO_BOUND)) - log_ratio
