"""The old policy of a token is the one that generated it, also where an abandoned life gave it the same number."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.sample_factory import make_sample
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.controller.batch_plan import Part, plan_step
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
    part = Part("policy", [meta], [[1.0]], "token")
    plan = plan_step(step=STEP, parts=[part], dp_size=1, max_tokens=8, pad_multiple=1)
    parallel = SimpleNamespace(device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=0)
    made = MicroBatches(parallel, 1, 1, None).of_plan(plan, {(0, 0): sample}, None, None, False)  # type: ignore[arg-type]
    objective = Objective(
        AlgorithmConfig(steps=20, prompts_per_step=1, samples_per_prompt=2), plan, parallel, kl_coef=0.0
    )  # type: ignore[arg-type]
    logprobs = torch.full((4,), -1.0, requires_grad=True)
    loss = objective(made[0], logprobs, torch.zeros(4))
    clipped = objective._algorithm.clip_high
    assert loss.item() == pytest.approx(-1.0 if own else -(1 + clipped))


def test_tokens_of_older_versions_are_compared_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that computes another model shows in both figures; an update shows in the older ones' alone."""
    versions = np.array([STEP - 1, STEP - 1, STEP, STEP], np.int32)
    sample = msgspec.structs.replace(
        make_sample(0, 0, response=4, routing=None),
        logprobs=np.array([-1, -2, -3, -4], np.float32),
        weight_versions=versions,
    )
    meta = Group(id=0, samples=[sample]).meta(0)
    plan = plan_step(
        step=STEP, parts=[Part("policy", [meta], [[1.0]], "token")], dp_size=1, max_tokens=8, pad_multiple=1
    )
    parallel = SimpleNamespace(device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=0)
    made = MicroBatches(parallel, 1, 1, None).of_plan(plan, {(0, 0): sample}, None, None, False)  # type: ignore[arg-type]
    objective = Objective(
        AlgorithmConfig(steps=20, prompts_per_step=1, samples_per_prompt=2), plan, parallel, kl_coef=0.0
    )  # type: ignore[arg-type]
    found: dict[str, float] = {}

    def add(means: dict, largest: dict) -> None:
        found.update({k: v[c].mean().item() for k, (v, c) in means.items() if k.startswith("logprob_mean")})

    monkeypatch.setattr(objective._figures, "add", add)
    objective(made[0], torch.full((4,), -1.25, requires_grad=True), torch.zeros(4))
    assert found == {"logprob_mean_diff": 2.25, "logprob_mean_diff_older": 0.5}


def one_rank_step(parts: list[Part], samples: list, logprobs: torch.Tensor) -> float:
    """The objective of a step on a single rank, whose policy has these log-probabilities at every token."""
    plan = plan_step(step=STEP, parts=parts, dp_size=1, max_tokens=64, pad_multiple=1)
    parallel = SimpleNamespace(device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=0)
    made = MicroBatches(parallel, 1, 1, None).of_plan(  # type: ignore[arg-type]
        plan, {(s.group, s.index): s for s in samples}, None, None, False
    )
    objective = Objective(
        AlgorithmConfig(steps=20, prompts_per_step=1, samples_per_prompt=2), plan, parallel, kl_coef=0.0
    )  # type: ignore[arg-type]
    total = 0.0
    for batch in made:
        values = logprobs[batch.labels % len(logprobs)].requires_grad_()
        total += objective(batch, values, torch.zeros(len(values))).item()
    return total


def test_the_objective_is_the_sum_of_its_terms() -> None:
    samples = [make_sample(0, i, response=4 + i, routing=None) for i in range(3)]
    meta = Group(id=0, samples=samples).meta(0)
    policy = Part("policy", [meta], [[1.0, -0.5, 0.25]], "token")
    imitated = Part("sft", [meta], [[1.0, -0.5, 0.25]], "sample", coefficient=0.3)
    logprobs = -torch.rand(97, generator=torch.Generator().manual_seed(0))
    both = one_rank_step([policy, imitated], samples, logprobs)
    apart = one_rank_step([policy], samples, logprobs) + one_rank_step([imitated], samples, logprobs)
    assert both == pytest.approx(apart, rel=1e-6)
    assert one_rank_step([imitated], samples, logprobs) != 0
