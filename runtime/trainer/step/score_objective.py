"""The objective of a reward model: the mean loss of the step's pairs, of which each sample has one score."""

from __future__ import annotations

import torch
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.preferences import score_loss
from verst.runtime.algorithms.stages import RewardModelStage
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.objective import sequences_of
from verst.runtime.trainer.step.weighted_objective import WeightedObjective


class ScoreObjective(WeightedObjective):
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
        super().__init__("reward_model", plan, parallel)
        self._center_coef = stage.center_coef

    def __call__(self, batch: Batch, scores: Tensor) -> Tensor:
        """Returns the micro-batch's share of the objective, a scalar. `scores` [n] have gradients.

        Both samples of a pair are in the micro-batch, if not on the same context-parallel rank.
        """
        sign, fixed = batch.advantages, scores.detach()
        pairs = sequences_of(batch, self._parallel).pairs()
        chosen, rejected = pairs.sum((sign > 0) * fixed), pairs.sum((sign < 0) * fixed)
        # Not from the two above: their rounding may be larger than the difference.
        difference, both = pairs.sum(sign * fixed), pairs.sum(fixed)
        margin = batch.signals.get("margin", torch.zeros_like(fixed))
        loss, by_difference, by_sum = score_loss(difference, both, margin, self._center_coef)
        through = scores - fixed  # 0, with the gradient of the score
        spread = loss / 2 + (by_difference * sign + by_sum) * through
        means = {
            "reward_model_accuracy": (difference > 0).float(),
            "reward_model_margin": difference,
            "reward_model_chosen_score": chosen,
            "reward_model_rejected_score": rejected,
        }
        return self.add(batch, spread, means)
