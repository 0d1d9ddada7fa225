"""Which policy is the old one, the denominator of the policy ratio (`trainer.old_logprobs`).

The policy before the step's first update, the engine's, or (auto) the one that generated the token: for tokens of the
weight version in training that is the policy before the update, whose own value keeps the engine's rounding out of the
ratio. A version of an abandoned life is -1: it may have had this number, and was another policy.

Decoupled PPO (arXiv:2110.00641) is `recompute` with a correction: the proximal policy is the one before the step, and
the correction weighs it against the engine's, the behaviour policy.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from verst.runtime.algorithms.tokens import TokenBatch
from verst.runtime.trainer.config import OldLogprobs
from verst.runtime.trainer.share.batch import Batch


def old_logprobs(
    batch: Batch | TokenBatch, before_update: Tensor, version: int, choice: OldLogprobs
) -> Tensor:
    """The old policy's log-probabilities, fp32 [n]. `before_update` [n]: the trainer's before the first update."""
    rollout = batch.signals["rollout_logprobs"]
    if choice == "rollout":
        return rollout
    if choice == "recompute":
        return before_update
    return torch.where(batch.versions == version, before_update, rollout)


def with_old_logprobs(batch: TokenBatch, version: int, choice: OldLogprobs) -> TokenBatch:
    """Completes "old_logprobs" where no scoring pass made them: the update in progress is then the step's only one."""
    if "old_logprobs" in batch.signals:
        return batch
    old = old_logprobs(batch, batch.logprobs.detach(), version, choice)
    return dataclasses.replace(batch, signals={**batch.signals, "old_logprobs": old})
