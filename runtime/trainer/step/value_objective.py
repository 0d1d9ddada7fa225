"""The objective of a critic's update: the weighted sum of its tokens' value losses."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.critic import CriticConfig
from verst.runtime.algorithms.losses import clipped_value
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.figures import Figures


class ValueObjective:
    """The objective of one update of the critic: the plan's term "value"."""

    def __init__(self, critic: CriticConfig, plan: StepPlan, parallel: Parallel) -> None:
        self._clip = critic.value_clip
        self._term = plan.terms.index("value")
        self._parallel = parallel
        self._loss = torch.zeros((), dtype=torch.float64, device=parallel.device)
        self._figures = Figures(parallel)

    def __call__(self, batch: Batch, values: Tensor) -> Tensor:
        """Returns the micro-batch's share of the objective, a scalar. `values` [n] have gradients."""
        weights = batch.weights[self._term]
        counted = weights > 0
        found = clipped_value(values, batch.signals["values"], batch.signals["returns"], self._clip)
        total = (weights * torch.where(counted, found.loss, 0)).sum()
        self._loss += total.detach()
        means = {"value_loss": found.loss, **found.metrics}
        self._figures.add({name: (tensor, counted) for name, tensor in means.items()}, {})
        return total

    def refuse_infinite(self) -> None:
        """There is no function of the recipe."""

    def reduce(self) -> tuple[float, dict[str, float]]:
        """Returns the objective, and its figures as means over the tokens that take part; equal on every rank.

        Collective over the world.
        """
        loss = self._loss * (self._parallel.tp_rank == 0 and self._parallel.is_last_stage)
        dist.all_reduce(loss)
        metrics, _ = self._figures.reduce()
        return loss.item(), metrics
