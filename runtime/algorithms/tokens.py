"""What a loss, a correction or a term may look at: the trained tokens of a micro-batch, flat, and their samples."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig


@dataclass(frozen=True)
class Sequences:
    """Which sample each of n tokens is of.

    A sample is never split over micro-batches. With context parallelism the ranks of `group` hold parts of it, so the
    methods are collective over them: all ranks must call the same ones, in the same order.
    """

    rows: Tensor  # int64 [n], the sample's place in the micro-batch; -1: a stand-in, which is of no sample
    count: int  # the number of samples in the micro-batch
    group: dist.ProcessGroup | None = None  # the context-parallel ranks; None: this rank holds whole samples

    def pairs(self) -> Sequences:
        """The same with pairs in place of samples, for the micro-batches of a step on pairs: there the two samples of a
        pair stand next to each other."""
        rows = torch.div(self.rows, 2, rounding_mode="floor")  # -1 stays -1
        return Sequences(rows, max(1, self.count // 2), self.group)

    def sum(self, values: Tensor) -> Tensor:
        """Each token gets the sum over its whole sample: fp32 [n] -> fp32 [n], without gradient; a stand-in gets 0."""
        return self._totals(values)[self.rows].to(values.dtype)

    def totals(self, values: Tensor) -> Tensor:
        """The sum over each sample: fp32 [n] -> fp64 [count], without gradient."""
        return self._totals(values)[:-1]

    def mean(self, values: Tensor) -> Tensor:
        """Each token gets the mean over its whole sample: fp32 [n] -> fp32 [n], without gradient; a stand-in gets 0."""
        return (self._totals(values) / self._counts)[self.rows].to(values.dtype)

    def largest(self, values: Tensor) -> Tensor:
        """Each token gets the largest value of its whole sample: fp32 [n] -> fp32 [n], without gradient."""
        found = values.new_full((self.count + 1,), -torch.inf)
        found.scatter_reduce_(0, self.rows % (self.count + 1), values.detach(), "amax")
        if self.group is not None:
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self.group)
        return found[self.rows]

    @functools.cached_property
    def _counts(self) -> Tensor:
        """The number of tokens of each sample, at least 1, fp64 [count + 1]."""
        return self._totals(torch.ones_like(self.rows)).clamp(min=1)

    def _totals(self, values: Tensor) -> Tensor:
        """Sums by sample, fp64 [count + 1]; the last one, for the stand-in, is 0.

        In fp64 the order of a GPU's additions changes nothing that is left in fp32: tensor-parallel ranks, which each
        compute the loss, must not differ at a bound.
        """
        totals = torch.zeros(self.count + 1, dtype=torch.float64, device=values.device)
        totals.index_add_(0, self.rows % (self.count + 1), values.detach().double())
        totals[-1] = 0
        if self.group is not None:
            dist.all_reduce(totals, group=self.group)
        return totals


@dataclass(frozen=True)
class TokenBatch:
    """The n >= 1 trained tokens of a micro-batch. Every tensor has one entry for each: fp32 [n] unless it says more.

    A context-parallel rank without a trained token has a stand-in, whose weight is 0.
    """

    logprobs: Tensor  # nats, under the policy in training at the token's sampling temperature; has gradients
    entropy: Tensor  # nats, of the same distribution; has gradients where `algorithm.entropy_coef` or a loss needs them
    advantages: Tensor
    versions: Tensor  # int64 [n], the weight version that generated the token; -1: one of an abandoned life
    # By name. "rollout_logprobs": under the engine. "old_logprobs": under the old policy, the denominator of the ratio.
    # "reference_logprobs", "teacher_logprobs": under these models, where the recipe has them. "covariance" and
    # "covariance_chosen": for the losses that choose tokens by it. "temperature", and what the samples bring.
    signals: Mapping[str, Tensor]
    sequences: Sequences
    config: AlgorithmConfig  # the recipe's `algorithm` section

    @property
    def old_logprobs(self) -> Tensor:
        """Under the old policy, nats: the denominator of the policy ratio."""
        return self.signals["old_logprobs"]

    @property
    def rollout_logprobs(self) -> Tensor:
        """As the engine reported them when it sampled the tokens, nats."""
        return self.signals["rollout_logprobs"]


@dataclass(frozen=True)
class TokenLoss:
    """The loss of each token, and figures of the step.

    `loss` [n] has gradients. Do not normalise it: the trainer multiplies each by the token's weight and adds them up.
    `metrics` are reported as means over the step's trained tokens: name -> [n]. Their names must be the same in every
    micro-batch.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
