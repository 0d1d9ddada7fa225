"""The old policy of a token is the one that generated it, also where an abandoned life gave it the same number."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.sample_factory import make_sample
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import plan_step
from verst.runtime.messages.sample import Group
from verst.runtime.trainer.step.microbatches import MicroBatches
from verst.runtime.trainer.step.objective import Objective

STEP = 13


@pytest.mark.parametrize(("common_version", "own"), [(None, True), (10, False), (13, True)])
def test_only_tokens_of_the_weights_in_training_have_a_ratio_of_one(
    common_version: int | None, own: bool
) -> None:
    sample = msgspec.structs.replace(
        make_sample(0, 0, response=4, routing=None),
        logprobs=np.full(4, -2, np.float32),
        weight_versions=np.full(4, STEP, np.int32),
    )
    meta = msgspec.structs.replace(Group(id=0, samples=[sample]).meta(0), common_version=common_version)
    plan = plan_step(
        step=STEP, loss="policy", groups=[meta], advantages=[[1.0]], average="token", dp_size=1, max_tokens=8,
        pad_multiple=1,
    )  # fmt: skip
    parallel = SimpleNamespace(device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=0)
    made = MicroBatches(parallel, 1, 1, None).of_plan(plan, {(0, 0): sample}, None, None, False)  # type: ignore[arg-type]
    objective = Objective(AlgorithmConfig(steps=20, prompts_per_step=1, samples_per_prompt=2), plan, parallel)  # type: ignore[arg-type]
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    loss = objective(made[0], logprobs, torch.zeros(4))
    clipped = objective._algorithm.clip_high
    assert loss.item() == pytest.approx(-1.0 if own else -(1 + clipped))
