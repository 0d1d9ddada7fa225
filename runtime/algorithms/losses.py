"""Per-token losses: pure functions of flat tensors with one entry for each trained token of a micro-batch.

A policy loss has the signature of `grpo`; the recipe chooses it by dotted path (`algorithm.loss`). It returns one loss
per token. It must not normalise: the trainer multiplies each loss by the token's weight and adds them up, and the
weights of a whole step sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyBatch:
    """The inputs of a policy loss. Every tensor is fp32 [n], with one entry for each trained token."""

    logprobs: Tensor  # of the policy being trained; has gradients
    old_logprobs: Tensor  # of the old policy, the denominator of the ratio
    advantages: Tensor
    clip_low: float
    clip_high: float


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` [n] has gradients. `clipped` [n] is 1.0 where clipping made the gradient zero."""

    loss: Tensor
    clipped: Tensor


def grpo(batch: PolicyBatch) -> PolicyLoss:
    """PPO's clipped surrogate with separate bounds: -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    The surrogate is eq. 7 of arXiv:1707.06347; the separate bounds are DAPO's (arXiv:2503.14476, eq. 10).
    """
    ratio = torch.exp(batch.logprobs - batch.old_logprobs)
    free = ratio * batch.advantages
    bounded = ratio.clamp(1 - batch.clip_low, 1 + batch.clip_high) * batch.advantages
    return PolicyLoss(-torch.minimum(free, bounded), (bounded < free).float())


def reinforce(batch: PolicyBatch) -> PolicyLoss:
    """The plain policy gradient, without a ratio: -A * log p."""
    return PolicyLoss(-batch.advantages * batch.logprobs, torch.zeros_like(batch.advantages))


def sft(logprobs: Tensor) -> Tensor:
    """The negative log-likelihood of the demonstration's tokens: -log p."""
    return -logprobs


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimate of KL(policy || reference) per token: r - 1 - log r, with r = reference / policy.

    It is unbiased for samples of the policy and never negative (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio
