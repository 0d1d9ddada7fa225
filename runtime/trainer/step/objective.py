"""Computes the objective of a step micro-batch by micro-batch, and the step's figures with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.divergences import k3
from verst.runtime.algorithms.tokens import Sequences, TokenBatch
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.config import OldLogprobs
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.agreement import FIGURE, OLDER
from verst.runtime.trainer.step.figures import Figures
from verst.runtime.trainer.step.old_policy import with_old_logprobs
from verst.runtime.trainer.step.terms import PairLoss, make_terms

# Gets each micro-batch and its log-probabilities [n], on the last stage.
Observer = Callable[[Batch, Tensor], None]


class Objective:
    """The objective of one update: the sum over its terms of weight times loss, summed over tokens."""

    def __init__(
        self,
        algorithm: AlgorithmConfig,
        plan: StepPlan,
        parallel: Parallel,
        observers: Sequence[Observer] = (),
        *,
        kl_coef: float,
        old: OldLogprobs = "auto",
        first: bool = True,
    ) -> None:
        """`kl_coef` is the weight of the KL in this step, and `old` says which policy is the old one. `first`: this is
        the step's first update, before which engine and trainer hold the same weights, so that they can be compared.
        """
        self._algorithm = algorithm
        self._observers = observers
        self._old, self._first = old, first
        self._version = plan.step  # of the weights that the step trains
        # The term "value" is the critic's (`value_objective.py`).
        self._columns = [i for i, name in enumerate(plan.terms) if name != "value"]
        self._terms = make_terms(plan, algorithm, kl_coef)
        self._parallel = parallel
        self._loss = torch.zeros((), dtype=torch.float64, device=parallel.device)
        self._figures = Figures(parallel)

    def __call__(self, batch: Batch, logprobs: Tensor, entropy: Tensor) -> Tensor:
        """Returns the micro-batch's share of the step's objective, a scalar."""
        for see in self._observers:
            see(batch, logprobs)
        tokens = with_old_logprobs(self._tokens(batch, logprobs, entropy), self._version, self._old)
        total = torch.zeros((), device=logprobs.device)
        means = {"entropy": (entropy, batch.trained)}
        largest: dict[str, Tensor] = {}
        for column, (name, term) in zip(self._columns, self._terms.items(), strict=True):
            weights = batch.weights[column]
            counted = weights > 0
            found = term(tokens)
            # A token that takes no part may have a loss of any size: 0 * inf would be NaN.
            total = total + (weights * torch.where(counted, found.loss, 0)).sum()
            count = counted * found.share if isinstance(found, PairLoss) else counted
            means |= {metric: (values * count, count) for metric, values in found.metrics.items()}
            if name == "policy" and self._first:
                difference = (logprobs.detach() - tokens.rollout_logprobs).abs()
                # Apart, because older tokens differ also for the updates since they were sampled.
                own = tokens.versions == self._version
                means[FIGURE], means[OLDER] = (difference, counted & own), (difference, counted & ~own)
                means["kl_rollout_k3"] = k3(tokens.rollout_logprobs, logprobs.detach()), counted
                largest["logprob_max_diff"] = torch.where(counted, difference, 0)
        self._loss += total.detach()
        self._figures.add(means, largest)
        return total

    def _tokens(self, batch: Batch, logprobs: Tensor, entropy: Tensor) -> TokenBatch:
        return TokenBatch(
            logprobs=logprobs,
            entropy=entropy,
            advantages=batch.advantages,
            versions=batch.versions,
            signals=batch.signals,
            sequences=sequences_of(batch, self._parallel),
            config=self._algorithm,
        )

    def refuse_infinite(self) -> None:
        """Raises HookError if a function of the recipe returned NaN or infinity. Call it before the update."""
        for term in self._terms.values():
            term.refuse_infinite()

    def reduce(self) -> tuple[float, dict[str, float]]:
        """Returns the step's objective, and its figures as means over all trained tokens; equal on every rank.

        Collective over the world.
        """
        loss = self._loss * (self._parallel.tp_rank == 0 and self._parallel.is_last_stage)
        dist.all_reduce(loss)
        metrics, counts = self._figures.reduce()
        metrics["trained_tokens"] = max(1.0, counts["entropy"])
        if "correction_square" in metrics:
            square = metrics.pop("correction_square")
            metrics["correction_ess"] = metrics["correction_mean"] ** 2 / square if square else 0.0
        return loss.item(), metrics


def sequences_of(batch: Batch, parallel: Parallel) -> Sequences:
    """Which sample each position of a micro-batch is of."""
    rows = torch.from_numpy(batch.places[:, 0].copy()).to(batch.tokens.device, non_blocking=True)
    return Sequences(rows, max(1, len(batch.names)), parallel.cp_group if parallel.cp_size > 1 else None)
