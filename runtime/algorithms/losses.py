"""Per-token losses: pure functions of flat tensors with one entry for each trained token of a micro-batch.

A policy loss has the signature of `grpo`; the recipe chooses it by dotted path (`algorithm.loss`). It returns one loss
per token. It must not normalise: the trainer multiplies each loss by the token's weight and adds them up, and the
weights of a whole step sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Log-ratios are clamped to this before exp. fp32 overflows at 88.7, and an infinite ratio makes the gradient NaN
# even where clipping sets it to zero (0 * inf).
LOG_RATIO_BOUND = 20.0


@dataclass(frozen=True)
class PolicyBatch:
    """The inputs of a policy loss. Every tensor is fp32 [n], with one entry for each trained token."""

    logprobs: Tensor  # of the policy being trained; has gradients
    old_logprobs: Tensor  # of the old policy, the denominator of the ratio
    advantages: Tensor
    clip_low: float
    clip_high: float
    clip_ratio_c: float | None = None  # bound of the dual clip; None: off


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` [n] has gradients. `clipped` [n] is 1.0 where clipping made the gradient zero.

    `dual_clipped` [n] is 1.0 where the dual clip alone did; None for a loss without one.
    """

    loss: Tensor
    clipped: Tensor
    dual_clipped: Tensor | None = None


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The policy ratio exp(logprobs - old_logprobs), with the log-ratio clamped to +-20.

    Beyond that the ratio is constant, so it has no gradient.
    """
    return torch.exp((logprobs - old_logprobs).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))


def grpo(batch: PolicyBatch) -> PolicyLoss:
    """PPO's clipped surrogate with separate bounds: -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    The surrogate is eq. 7 of arXiv:1707.06347; the separate bounds are DAPO's (arXiv:2503.14476, eq. 10). With
    `clip_ratio_c` a token with A < 0 loses no more than -c * A: the dual clip (arXiv:1912.09729, eq. 5).
    """
    advantages = batch.advantages
    ratio = policy_ratio(batch.logprobs, batch.old_logprobs)
    free = ratio * advantages
    bounded = ratio.clamp(1 - batch.clip_low, 1 + batch.clip_high) * advantages
    surrogate = torch.minimum(free, bounded)
    # A ratio that policy_ratio bounds has no gradient either. Below the bounds above this matters for A < 0 only.
    bound = batch.logprobs.detach() - batch.old_logprobs > LOG_RATIO_BOUND
    clipped = (bounded < free) | (bound & (advantages < 0))
    if batch.clip_ratio_c is None:
        return PolicyLoss(-surrogate, clipped.float())
    floor = batch.clip_ratio_c * advantages
    dual = (advantages < 0) & (surrogate < floor)
    return PolicyLoss(-torch.where(dual, floor, surrogate), (clipped | dual).float(), dual.float())


def reinforce(batch: PolicyBatch) -> PolicyLoss:
    """The plain policy gradient, without a ratio: -A * log p."""
    return PolicyLoss(-batch.advantages * batch.logprobs, torch.zeros_like(batch.advantages))


def sft(logprobs: Tensor) -> Tensor:
    """The negative log-likelihood of the demonstration's tokens: -log p."""
    return -logprobs


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) per token: r - 1 - log r, with r = reference / policy.

    For samples of the policy its value is unbiased and never negative (http://joschu.net/blog/kl-approx.html). Its
    gradient is not that of KL(policy || reference): the gradient of log p is 1 - r, whose mean over samples of the
    policy is the gradient of KL(reference || policy).

    log r is bounded by 20, beyond which the gradient is zero. Far below -20 the gradient remains 1.
    """
    log_ratio = (reference - logprobs).clamp(max=LOG_RATIO_BOUND)
    return torch.expm1(log_ratio.clamp(min=-LOG_RATIO_BOUND)) - log_ratio
