"""Per-token losses. Pure functions on flat tensors over the trained tokens of a micro-batch.

A policy loss has the signature of `grpo` and is chosen in the recipe by dotted path (`algorithm.loss`). It
returns one loss per token; the trainer multiplies by the tokens' weights, which sum to one over the whole step,
and sums, so a loss function normalises nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyBatch:
    """What a policy loss may look at. Every tensor is fp32 [n], one entry for each trained token."""

    logprobs: Tensor  # under the policy being trained; carries gradients
    old_logprobs: Tensor  # under the policy that the ratio divides by
    advantages: Tensor
    clip_low: float
    clip_high: float


@dataclass(frozen=True)
class PolicyLoss:
    """`loss` [n] carries gradients; `clipped` [n] is 1.0 where the clip took the gradient away."""

    loss: Tensor
    clipped: Tensor


def grpo(batch: PolicyBatch) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A): PPO's clipped surrogate (arXiv:1707.06347, eq. 7)
    with separate bounds (DAPO, arXiv:2503.14476, eq. 10)."""
    ratio = torch.exp(batch.logprobs - batch.old_logprobs)
    free = ratio * batch.advantages
    bounded = ratio.clamp(1 - batch.clip_low, 1 + batch.clip_high) * batch.advantages
    return PolicyLoss(-torch.minimum(free, bounded), (bounded < free).float())


def reinforce(batch: PolicyBatch) -> PolicyLoss:
    """-A * log p, without a ratio: the plain policy gradient."""
    return PolicyLoss(-batch.advantages * batch.logprobs, torch.zeros_like(batch.advantages))


def sft(logprobs: Tensor) -> Tensor:
    """-log p of the demonstration's token."""
    return -logprobs


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) per token by the k3 estimator, r - 1 - log r with r = reference / policy
    (http://joschu.net/blog/kl-approx.html): unbiased for samples of the policy, never negative."""
    log_ratio = reference - logprobs
    return torch.expm1(log_ratio) - log_ratio
