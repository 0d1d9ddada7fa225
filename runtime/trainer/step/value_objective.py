"""The objective of a critic's update: the weighted sum of its tokens' value losses."""

from __future__ import annotations

from torch import Tensor

from verst.runtime.algorithms.critic import CriticConfig
from verst.runtime.algorithms.losses import clipped_value
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.weighted_objective import WeightedObjective


class ValueObjective(WeightedObjective):
    """The objective of one update of the critic: the plan's term "value"."""

    def __init__(self, critic: CriticConfig, plan: StepPlan, parallel: Parallel) -> None:
        super().__init__("value", plan, parallel)
        self._clip = critic.value_clip

    def __call__(self, batch: Batch, values: Tensor) -> Tensor:
        """Returns the micro-batch's share of the objective, a scalar. `values` [n] have gradients."""
        found = clipped_value(values, batch.signals["values"], batch.signals["returns"], self._clip)
        return self.add(batch, found.loss, {"value_loss": found.loss, **found.metrics})
