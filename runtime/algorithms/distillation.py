"""On-policy distillation: the policy's own tokens, and a teacher's log-probabilities of them. Pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from verst.runtime.algorithms.tokens import TokenBatch


def with_teacher(batch: TokenBatch, coef: float) -> TokenBatch:
    """The batch with advantages A + coef * (log q - log p_old), with the teacher q and the old policy p_old.

    The term that is added estimates the negative reverse KL divergence KL(p || q) of each token's distribution
    (arXiv:2306.08543, eq. 1; arXiv:2306.13649 with on-policy data), and the policy gradient lowers that divergence.
    What a token does to later ones is not counted: the discount is 0.
    """
    return dataclasses.replace(batch, advantages=taught(batch.advantages, batch.signals, coef))


def taught(advantages: Tensor, signals: Mapping[str, Tensor], coef: float) -> Tensor:
    """The advantages of `with_teacher`, [n]."""
    return advantages + coef * (signals["teacher_logprobs"] - signals["old_logprobs"])


def reverse_kl(batch: TokenBatch) -> Tensor:
    """log p - log q of each token, [n], without gradient: its mean over the policy's own tokens is KL(p || q)."""
    return batch.logprobs.detach() - batch.signals["teacher_logprobs"]
