"""What one optimisation step trains on: the wire type between the controller and the trainer ranks.

Made by `controller/batch_plan.py` from group metadata alone; the ranks fetch the data it refers to.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

LossKind = Literal["policy", "sft"]


class SampleRef(msgspec.Struct, frozen=True, array_like=True):
    """One sample of a step: where it is and what the controller decided about it."""

    group: int
    index: int
    shard: int  # the store shard that holds it
    length: int  # prompt + response tokens
    advantage: float
    # Weight of each of its trained tokens in the loss. The weights of a step's trained tokens sum to
    # one over all samples, so a rank sums weighted losses and nothing else needs normalising.
    token_weight: float


class MicroBatch(msgspec.Struct, frozen=True, array_like=True):
    """Samples that go through the model together, each padded to `padded_length` tokens."""

    samples: list[SampleRef]
    padded_length: int


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Every data-parallel rank's micro-batches for one step, all lists of the same length.

    A rank that would have fewer micro-batches gets empty ones (no samples): pipeline schedules need the
    same number everywhere.
    """

    step: int  # counts optimiser steps from 0; trains weight version `step` into `step + 1`
    loss: LossKind
    microbatches: list[list[MicroBatch]]  # [data-parallel rank][micro-batch]
    shown: list[tuple[int, int]] = []  # (group, index) of the samples to report on one by one


class ShownSample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of a step as its trainer saw it, for people to look at. R response tokens."""

    group: int
    index: int
    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R]
    rollout_logprobs: np.ndarray  # float32 [R]
    # float32 [R], of the pass that was trained on; 0 where the loss mask is 0
    trainer_logprobs: np.ndarray
    advantage: float
    reward: float
    # uint8 [R], 1 where the trainer by itself would have routed the position that predicts the token to other
    # experts, in any of the layers of the last pipeline stage; None when that is not known
    routing_differs: np.ndarray | None = None


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank measured in one step. Scalars are reduced over the whole world: equal on every rank."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int  # real tokens (no padding) that went through the model
    metrics: dict[str, float]  # e.g. "kl_rollout_k3", "clip_fraction", "entropy", "logprob_max_diff"
    seconds: dict[
        str, float
    ]  # by phase: "fetch", "old_logprobs", "ref_logprobs", "forward_backward", "optimizer"
    shown: list[ShownSample] = []  # those of `StepPlan.shown` that this rank reports
