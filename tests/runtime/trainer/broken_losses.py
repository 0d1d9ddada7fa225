"""Policy losses that go wrong in the ways that a user's can."""

from __future__ import annotations

import torch

from verst.runtime.algorithms.losses import PolicyBatch, PolicyLoss


def _with(batch: PolicyBatch, added: torch.Tensor) -> PolicyLoss:
    return PolicyLoss(added - batch.advantages * batch.logprobs, torch.zeros_like(batch.advantages))


def nan_gradient(batch: PolicyBatch) -> PolicyLoss:
    """A finite loss whose gradient is NaN: sqrt has an infinite slope at 0."""
    return _with(batch, torch.sqrt(batch.logprobs * 0.0))


def infinite_gradient(batch: PolicyBatch) -> PolicyLoss:
    """A finite loss whose gradient overflows."""
    shifted = batch.logprobs - batch.logprobs.detach()
    return _with(batch, shifted * 1e30 * 1e30)
