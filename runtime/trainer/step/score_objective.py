"""The objective of a reward model: the mean loss of the step's pairs, of which each sample has one score."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.preferences import score_loss
from verst.runtime.algorithms.stages import RewardModelStage
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.figures import Figures
from verst.runtime.trainer.step.objective import sequences_of


class ScoreObjective:
    """The objective of one update of a reward model: the plan's term "reward_model".

    The advantage of a score is 1 of the chosen answer and -1 of the rejected one. With weights of 1 / pairs the
    weighted sum over scores is the mean loss over pairs, and its gradient that of this loss.
    """

    def __init__(self, algorithm: AlgorithmConfig, plan: StepPlan, parallel: Parallel) -> None:
        """Raises ValueError if the plan is not of a stage of kind reward_model."""
        stage = None if plan.stage is None else algorithm.stages[plan.stage]
        if not isinstance(stage, RewardModelStage):
            raise ValueError(
                f"step {plan.step + 1} has pairs to score, but stage {plan.stage} of the recipe is not of kind "
                "reward_model"
            )
        self._center_coef = stage.center_coef
        self._term = plan.terms.index("reward_model")
        self._parallel = parallel
        self._loss = torch.zeros((), dtype=torch.float64, device=parallel.device)
        self._figures = Figures(parallel)

    def __call__(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the micro-batch's share of the objective, a scalar. `scores` [n] have gradients.

        Both samples of a pair are in the micro-batch, if not on the same context-parallel rank.
        """
        weights, sign = batch.weights[self._term], batch.advantages
        counted = weights > 0
        pairs, fixed = sequences_of(batch, self._parallel).pairs(), scores.detach()
        chosen, rejected = pairs.sum((sign > 0) * fixed), pairs.sum((sign < 0) * fixed)
        # Not from the two above: their rounding may be larger than the difference.
        difference, both = pairs.sum(sign * fixed), pairs.sum(fixed)
        margin = batch.signals.get("margin", torch.zeros_like(fixed))
        loss, by_difference, by_sum = score_loss(difference, both, margin, self._center_coef)
        through = scores - fixed  # 0, with the gradient of the score
        spread = loss / 2 + (by_difference * sign + by_sum) * through
        total = (weights * torch.where(counted, spread, 0)).sum()
        self._loss += total.detach()
        means = {
            "reward_model_accuracy": (difference > 0).float(),
            "reward_model_margin": difference,
            "reward_model_chosen_score": chosen,
            "reward_model_rejected_score": rejected,
        }
        self._figures.add({name: (values, counted) for name, values in means.items()}, {})
        return total

    def refuse_infinite(self) -> None:
        """There is no function of the recipe."""

    def reduce(self) -> tuple[float, dict[str, float]]:
        """Returns the objective, and its figures as means over pairs; equal on every rank.

        Collective over the world.
        """
        loss = self._loss * (self._parallel.tp_rank == 0 and self._parallel.is_last_stage)
        dist.all_reduce(loss)
        metrics, _ = self._figures.reduce()
        return loss.item(), metrics
