"""A reward model's loss and gradient are the papers', however pairs are spread over micro-batches and ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.runtime.trainer.step.test_pairs import VOCABULARY, pairs
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.stages import RewardModelStage
from verst.runtime.controller.batch_plan import plan_step
from verst.runtime.controller.stage_parts import parts_of_stage
from verst.runtime.messages.sample import Group
from verst.runtime.messages.step_plan import MicroBatch, StepPlan
from verst.runtime.trainer.step.microbatches import MicroBatches
from verst.runtime.trainer.step.score_objective import ScoreObjective


def stage(**options: Any) -> RewardModelStage:
    given = {"kind": "reward_model", "data": {"path": "p"}, "steps": 9, **options}
    return RewardModelStage.model_validate(given)


def with_margins(groups: list[Group]) -> list[Group]:
    """Each pair with a margin of its own."""

    def signals(group: Group, tokens: int) -> dict[str, np.ndarray]:
        return {"margin": np.full(tokens, 0.3 * -group.id, np.float32)}

    return [
        Group(
            id=group.id,
            samples=[
                msgspec.structs.replace(s, signals=signals(group, len(s.response_ids))) for s in group.samples
            ],
        )
        for group in groups
    ]


def plan(groups: list[Group], of: RewardModelStage, dp: int, max_tokens: int) -> StepPlan:
    parts = parts_of_stage([group.meta(0) for group in groups], of)
    made = plan_step(step=3, parts=parts, dp_size=dp, max_tokens=max_tokens, pad_multiple=1)
    return msgspec.structs.replace(made, stage=0)


def objective(
    groups: list[Group], made: StepPlan, of: RewardModelStage, table: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """The step's objective summed over ranks and micro-batches, where a sample's score is its last token's entry."""
    samples = {(s.group, s.index): s for group in groups for s in group.samples}
    algorithm = AlgorithmConfig.model_validate({"stages": [of.model_dump()]})
    total = torch.zeros((), dtype=torch.float64)
    sums: dict[str, torch.Tensor] = {}
    for rank in range(len(made.microbatches)):
        parallel: Any = SimpleNamespace(device=torch.device("cpu"), cp_rank=0, cp_size=1, dp_rank=rank)
        step = ScoreObjective(algorithm, made, parallel)
        for batch in MicroBatches(parallel, 1, 1, None).of_plan(made, samples, None, None, False):
            ends = np.cumsum(batch.lengths) - 1
            if batch.names:  # else there is a stand-in, which does not count
                assert batch.positions.tolist() == ends.tolist(), "scores are read at the last tokens"
            total = total + step(batch, table[batch.tokens[0, batch.positions]])
        assert step._figures._sums is not None
        for name, both in zip(step._figures._names, step._figures._sums, strict=True):
            sums[name] = sums.get(name, torch.zeros(2)) + both
    return total, {name: float(value / count) for name, (value, count) in sums.items()}


def of_the_papers(
    groups: list[Group], of: RewardModelStage, table: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Eq. 2 of arXiv:2307.09288, and the mean square of the sum of scores, float64."""
    losses, scores = [], []
    for group in groups:
        chosen, rejected = (table[int(sample.response_ids[-1])] for sample in group.samples)
        margin = float(group.samples[0].signals["margin"][0]) if "margin" in group.samples[0].signals else 0.0
        losses.append(-torch.log(1 / (1 + torch.exp(-(chosen - rejected - margin)))))
        losses[-1] = losses[-1] + of.center_coef * (chosen + rejected) ** 2
        scores.append([chosen.item(), rejected.item()])
    both = np.array(scores)
    return torch.stack(losses).mean(), {
        "reward_model_accuracy": float((both[:, 0] > both[:, 1]).mean()),
        "reward_model_margin": float((both[:, 0] - both[:, 1]).mean()),
        "reward_model_chosen_score": float(both[:, 0].mean()),
        "reward_model_rejected_score": float(both[:, 1].mean()),
    }


@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("center_coef", [0.0, 0.3])
@pytest.mark.parametrize(("dp", "max_tokens"), [(1, 4096), (1, 24), (2, 30), (3, 24)])
def test_loss_gradient_and_figures_are_those_of_the_papers(
    margins: bool, center_coef: float, dp: int, max_tokens: int
) -> None:
    groups, of = with_margins(pairs(7)) if margins else pairs(7), stage(center_coef=center_coef)
    table = 2 * torch.randn(VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine, theirs = table.clone().requires_grad_(), table.clone().requires_grad_()
    made = plan(groups, of, dp, max_tokens)
    assert (len(made.microbatches[0]) > 1) == (max_tokens < 4096)
    assert made.signals == (["margin"] if margins else [])
    loss, figures = objective(groups, made, of, mine)
    expected, wanted = of_the_papers(groups, of, theirs)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert mine.grad is not None
    assert theirs.grad is not None
    np.testing.assert_allclose(mine.grad, theirs.grad, atol=1e-6 * float(theirs.grad.abs().max()))
    assert 0 < wanted["reward_model_accuracy"] < 1
    assert {name: figures[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


def test_a_micro_batch_that_separates_a_pair_is_refused() -> None:
    groups, of = pairs(2), stage()
    made = plan(groups, of, 1, 4096)
    refs = made.microbatches[0][0].samples
    apart = msgspec.structs.replace(
        made, microbatches=[[MicroBatch([refs[0], refs[2]]), MicroBatch(refs[1::2])]]
    )
    with pytest.raises(ValueError, match="both samples of each group must be side by side"):
        objective(groups, apart, of, torch.zeros(VOCABULARY))
