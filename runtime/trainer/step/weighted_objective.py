"""What the objectives of a critic and of a reward model have in common: one term, and no function of the recipe."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.messages.step_plan import StepPlan, TermName
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.figures import Figures


class WeightedObjective:
    """The weighted sum of the losses of one term of the plan, over micro-batches and ranks."""

    def __init__(self, term: TermName, plan: StepPlan, parallel: Parallel) -> None:
        self._term = plan.terms.index(term)
        self._parallel = parallel
        self._loss = torch.zeros((), dtype=torch.float64, device=parallel.device)
        self._figures = Figures(parallel)

    def add(self, batch: Batch, loss: Tensor, means: dict[str, Tensor]) -> Tensor:
        """Returns the micro-batch's share of the objective, a scalar; `loss` [n] and `means`, [n] each, are counted
        where the term's weight is above 0."""
        weights = batch.weights[self._term]
        counted = weights > 0
        total = (weights * torch.where(counted, loss, 0)).sum()
        self._loss += total.detach()
        self._figures.add({name: (values, counted) for name, values in means.items()}, {})
        return total

    def refuse_infinite(self) -> None:
        """There is no function of the recipe."""

    def reduce(self) -> tuple[float, dict[str, float]]:
        """Returns the objective, and its figures as means over what is counted; equal on every rank.

        Collective over the world.
        """
        loss = self._loss * (self._parallel.tp_rank == 0 and self._parallel.is_last_stage)
        dist.all_reduce(loss)
        metrics, _ = self._figures.reduce()
        return loss.item(), metrics
