"""The plan of an optimisation step, which the controller sends to the trainer ranks, and their report.

`controller/batch_plan.py` makes a plan from group metadata alone. The ranks fetch the data that it refers to.
"""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec
import numpy as np

TermName = Literal["policy", "sft", "dpo", "reward_model", "value"]


class SampleRef(msgspec.Struct, frozen=True, array_like=True):
    """One sample of a step: where it is stored, its advantage and its weights."""

    group: int
    index: int
    shard: int  # the store shard that holds it
    length: int  # prompt + response tokens
    advantage: float  # with a critic its reward, of which the ranks make an advantage for each token
    # The weight of each of its trained tokens in each term of `StepPlan.terms`; 0 where it takes no part. A rank only
    # sums weighted losses, and no other normalisation is needed.
    weights: list[float]
    common_version: int | None = None  # as in `GroupMeta`


class MicroBatch(msgspec.Struct, frozen=True, array_like=True):
    """Samples that go through the model together, one after another in one row of tokens."""

    samples: list[SampleRef]


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The micro-batches of every data-parallel rank for one step, the same number for each.

    A rank that would have fewer gets empty ones (without samples), because pipeline schedules need the same
    number on all ranks.
    """

    step: int  # counts from 0; turns weight version `step` into `step + 1`
    terms: list[TermName]  # the objective is their sum
    microbatches: list[list[MicroBatch]]  # [data-parallel rank][micro-batch]
    # The number of micro-batches of each mini-batch, in order; together they are all. A sample is in one mini-batch.
    # Each is an update of its own, whose weights sum to one. Empty: all micro-batches are one.
    mini_batches: list[int] = []
    epochs: int = 1  # how many times the mini-batches are trained on
    stage: int | None = (
        None  # the stage of `algorithm.stages` whose rows these are; None: the policy's samples
    )
    signals: list[str] = []  # the names of the signals that all samples bring, besides "temperature"
    shown: list[tuple[int, int]] = []  # (group, index) of the samples to report on one by one

    @property
    def updates(self) -> list[slice]:
        """The micro-batches of each update of the step, in order. A mini-batch whose weights are all 0 has none."""
        sizes = self.mini_batches or [len(self.microbatches[0])]
        ends = list(itertools.accumulate(sizes))
        parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return [part for part in parts if self._trains(part)] * self.epochs

    def _trains(self, part: slice) -> bool:
        """Whether a sample of these micro-batches takes part, on any rank."""
        return any(
            any(ref.weights) for rank in self.microbatches for cut in rank[part] for ref in cut.samples
        )


class ShownSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of a step as the trainer saw it, for people to look at. P prompt and R response tokens."""

    group: int
    index: int
    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R]
    rollout_logprobs: np.ndarray  # float32 [R]
    # float32 [R], of the forward pass that was trained on; 0 where the loss mask is 0
    trainer_logprobs: np.ndarray
    old_logprobs: np.ndarray  # the same of the old policy, the denominator of the policy ratio
    advantage: float  # with a critic the mean over its trained tokens
    reward: float
    reference_logprobs: np.ndarray | None = None  # the same of the reference; None if the recipe has none
    # uint8 [R], 1 where the trainer's own routing would have sent the position that predicts the token to
    # other experts, in any layer of the last pipeline stage; None if that is not known
    routing_differs: np.ndarray | None = None


class SampleScore(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks find in one sample of a step before they train on it. Sums over its trained tokens, in nats."""

    group: int
    index: int
    penalty: float = 0.0  # what `algorithm.kl_in: reward` takes from its reward: `kl_coef` times the KL
    # The rest is for `algorithm.logprob_filter`; without one it is 0.
    logprobs: float = 0.0  # of the trainer's weights before the step
    rollout_logprobs: float = 0.0  # as the engine reported them
    difference: float = 0.0  # of these two, each token's without its sign
    entropy: float = 0.0  # of the trainer's distributions
    reference_logprobs: float | None = None  # None: the recipe has no reference
    teacher_logprobs: float | None = None  # None: the recipe has no teacher


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """A rank's measurements in one step. Scalars are reduced over the whole world, so equal on every rank.

    Loss, gradient norm and metrics are means over the updates of the step; `lr` is that of the last.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int  # real tokens (no padding) of the step's samples
    metrics: dict[str, float]  # e.g. "kl_rollout_k3", "clip_fraction", "entropy", "logprob_max_diff"
    seconds: dict[
        str, float
    ]  # by phase: "fetch", "own_routing", "policy_logprobs", "reference_logprobs", "forward_backward", "optimizer"
    shown: list[ShownSample] = []  # the samples of `StepPlan.shown` that this rank reports
