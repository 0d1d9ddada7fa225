"""Policy losses of a user: some go wrong, one reports a figure."""

from __future__ import annotations

import torch

from verst.runtime.algorithms.tokens import TokenBatch, TokenLoss


def _with(batch: TokenBatch, added: torch.Tensor) -> TokenLoss:
    return TokenLoss(added - batch.advantages * batch.logprobs)


def nan_gradient(batch: TokenBatch) -> TokenLoss:
    """A finite loss whose gradient is NaN: sqrt has an infinite slope at 0."""
    return _with(batch, torch.sqrt(batch.logprobs * 0.0))


def infinite_gradient(batch: TokenBatch) -> TokenLoss:
    """A finite loss whose gradient overflows."""
    shifted = batch.logprobs - batch.logprobs.detach()
    return _with(batch, shifted * 1e30 * 1e30)


def with_a_figure(batch: TokenBatch) -> TokenLoss:
    """The plain policy gradient with an entropy bonus of its own, and a figure."""
    loss = -batch.advantages * batch.logprobs - 0.05 * batch.entropy
    return TokenLoss(loss, {"positive": batch.advantages > 0})
