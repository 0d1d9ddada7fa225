"""The loss and the gradient of pairs are the papers', however pairs are spread over micro-batches and ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.sample_factory import make_sample
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import DpoStage
from verst.runtime.controller.batch_plan import plan_step
from verst.runtime.controller.stage_parts import parts_of_stage
from verst.runtime.messages.sample import Group
from verst.runtime.messages.step_plan import MicroBatch, StepPlan
from verst.runtime.trainer.step.microbatches import MicroBatches
from verst.runtime.trainer.step.objective import Objective

VOCABULARY = 97


def pairs(count: int) -> list[Group]:
    """Pairs of answers of uneven lengths, some of whose tokens are not trained on."""
    random = np.random.default_rng(0)
    groups = []
    for number in range(count):
        samples = []
        for index in range(2):
            made = make_sample(-1 - number, index, response=int(random.integers(2, 9)), routing=None)
            mask = (random.random(len(made.response_ids)) < 0.7).astype(np.uint8)
            mask[random.integers(len(mask))] = 1
            ids = random.integers(0, VOCABULARY, len(made.response_ids)).astype(np.int32)
            samples.append(msgspec.structs.replace(made, loss_mask=mask, response_ids=ids))
        groups.append(Group(id=-1 - number, samples=samples))
    return groups


def stage(**options: Any) -> DpoStage:
    return DpoStage.model_validate({"kind": "dpo", "data": {"path": "p"}, "steps": 9, **options})


def plan(groups: list[Group], of: DpoStage, dp: int, max_tokens: int) -> StepPlan:
    parts = parts_of_stage([group.meta(0) for group in groups], of)
    made = plan_step(step=3, parts=parts, dp_size=dp, max_tokens=max_tokens, pad_multiple=1)
    return msgspec.structs.replace(made, stage=0)


def objective(
    groups: list[Group], made: StepPlan, of: DpoStage, table: torch.Tensor, reference: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """The step's objective summed over ranks and micro-batches, where a token's log-probability is its table entry."""
    samples = {(s.group, s.index): s for group in groups for s in group.samples}
    algorithm = AlgorithmConfig.model_validate({"stages": [of.model_dump()]})
    total = torch.zeros((), dtype=torch.float64)
    sums: dict[str, torch.Tensor] = {}
    for rank in range(len(made.microbatches)):
        parallel: Any = SimpleNamespace(device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=rank)
        step = Objective(algorithm, made, parallel, kl_coef=0.0)
        for batch in MicroBatches(parallel, 1, 1, None).of_plan(made, samples, None, None, False):
            assert batch.temperature is None, "no policy sampled these tokens"
            scored = batch.with_signal("reference_logprobs", reference[batch.labels])
            total = total + step(scored, table[batch.labels], torch.zeros(len(batch.labels)))
        assert step._figures._sums is not None
        for name, both in zip(step._figures._names, step._figures._sums, strict=True):
            sums[name] = sums.get(name, torch.zeros(2)) + both
    return total, {name: float(value / count) for name, (value, count) in sums.items()}


def of_the_papers(
    groups: list[Group], of: DpoStage, table: torch.Tensor, reference: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Eq. 7 of arXiv:2305.18290 with label smoothing, or eq. 17 of arXiv:2310.12036, float64: the mean over pairs."""

    def trained(group: Group, index: int) -> torch.Tensor:
        sample = group.samples[index]
        return torch.from_numpy(sample.response_ids[sample.loss_mask.astype(bool)]).long()

    ratios = [[(table[ids] - reference[ids]).sum() for ids in (trained(g, 0), trained(g, 1))] for g in groups]
    losses = []
    for group, (chosen, rejected) in zip(groups, ratios, strict=True):
        h = of.beta * (chosen - rejected)
        if of.loss == "ipo":
            loss = (chosen - rejected - 1 / (2 * of.beta)) ** 2
        else:
            loss = -(1 - of.label_smoothing) * torch.log(torch.sigmoid(h))
            loss = loss - of.label_smoothing * torch.log(torch.sigmoid(-h))
        losses.append(loss - of.sft_coef * table[trained(group, 0)].mean())
    rewards = of.beta * torch.tensor([[ratio.item() for ratio in both] for both in ratios])
    margins = rewards[:, 0] - rewards[:, 1]
    return torch.stack(losses).mean(), {
        "dpo_margin": margins.mean().item(),
        "dpo_accuracy": (margins > 0).double().mean().item(),
        "dpo_chosen_reward": rewards[:, 0].mean().item(),
        "dpo_rejected_reward": rewards[:, 1].mean().item(),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.7, "label_smoothing": 0.2, "sft_coef": 0.3},
        {"loss": "ipo", "beta": 0.4},
        {"loss": "ipo", "beta": 0.05, "sft_coef": 1.0},
    ],
)
@pytest.mark.parametrize(("dp", "max_tokens"), [(1, 4096), (1, 24), (2, 30), (3, 24)])
def test_loss_gradient_and_figures_are_those_of_the_papers(
    options: dict[str, Any], dp: int, max_tokens: int
) -> None:
    groups, of = pairs(7), stage(**options)
    generator = torch.Generator().manual_seed(0)
    table, reference = (-3 * torch.rand(2, VOCABULARY, dtype=torch.float64, generator=generator)).unbind()
    mine, theirs = table.clone().requires_grad_(), table.clone().requires_grad_()
    made = plan(groups, of, dp, max_tokens)
    assert (len(made.microbatches[0]) > 1) == (max_tokens < 4096)
    loss, figures = objective(groups, made, of, mine, reference)
    expected, wanted = of_the_papers(groups, of, theirs, reference)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert mine.grad is not None
    assert theirs.grad is not None
    np.testing.assert_allclose(mine.grad, theirs.grad, atol=1e-6 * float(theirs.grad.abs().max()))
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_micro_batch_that_separates_a_pair_is_refused() -> None:
    groups, of = pairs(2), stage()
    made = plan(groups, of, 1, 4096)
    refs = made.microbatches[0][0].samples
    apart = msgspec.structs.replace(
        made, microbatches=[[MicroBatch([refs[0], refs[2]]), MicroBatch(refs[1::2])]]
    )
    with pytest.raises(ValueError, match="both samples of each group must be side by side"):
        objective(groups, apart, of, torch.zeros(VOCABULARY), torch.zeros(VOCABULARY))
