"""Chooses the tokens of an update that `clip_cov` and `kl_cov` treat apart, over all ranks.

`algorithms/covariance.py` says how.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.covariance import Candidates, covariances, draws
from verst.runtime.algorithms.distillation import taught
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch


class CovarianceChoice:
    """Makes the signals "covariance" and "covariance_chosen", 1 for the chosen tokens, on the last stage."""

    def __init__(self, algorithm: AlgorithmConfig, parallel: Parallel) -> None:
        self._algorithm, self._parallel = algorithm, parallel

    @torch.no_grad()
    def __call__(self, plan: StepPlan, number: int, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of update `number` of a plan, with the signals; before the last stage as they are.

        They are scored. Collective over the ranks of the last stage. Every split of the same tokens has the same
        choice, but for the rounding of sums and of log-probabilities.
        """
        if not self._parallel.is_last_stage:
            return list(batches)
        column = plan.terms.index("policy")
        counted = [(batch.weights[column] > 0).cpu().numpy() for batch in batches]
        logprobs = [batch.signals["old_logprobs"].cpu().numpy() for batch in batches]
        advantages = [self._advantages(batch).cpu().numpy() for batch in batches]
        means = self._means(logprobs, advantages, counted)
        found = [covariances(p, a, means[1], means[2]) for p, a in zip(logprobs, advantages, strict=True)]
        key = self._algorithm.seed, plan.step, number
        drawn = [draws(key, _places(batch)) for batch in batches]
        everyone = [_joined(values, counted) for values in (found, drawn)]
        chosen = self._chosen(Candidates.of(self._algorithm, *everyone), int(means[0]))
        return [
            _with_signals(batch, values, np.isin(names, chosen) & mask)
            for batch, values, names, mask in zip(batches, found, drawn, counted, strict=True)
        ]

    def _advantages(self, batch: Batch) -> Tensor:
        """As the loss sees them."""
        teacher = self._algorithm.teacher
        return batch.advantages if teacher is None else taught(batch.advantages, batch.signals, teacher.coef)

    def _means(
        self, logprobs: list[np.ndarray], advantages: list[np.ndarray], counted: list[np.ndarray]
    ) -> tuple[float, float, float]:
        """The number of tokens over all ranks, and their mean log-probability and advantage.

        Each rank adds up the ranks' sums for itself, in one order: tensor-parallel ranks, which belong to different
        groups, must not differ.
        """
        columns = [_joined(values, counted).astype(np.float64) for values in (logprobs, advantages)]
        mine = torch.tensor([float(len(columns[0])), *(fsum(column) for column in columns)]).double()
        parts = self._gathered(mine)
        count, *sums = (fsum(column) for column in zip(*(part.tolist() for part in parts), strict=True))
        mean_logprob, mean_advantage = (total / max(1.0, count) for total in sums)
        return count, mean_logprob, mean_advantage

    def _chosen(self, mine: Candidates, tokens: int) -> np.ndarray:
        """The draws of the chosen tokens of all ranks, uint64 [at most share * tokens]."""
        count = int(self._algorithm.cov_share * tokens)
        best = mine.first(count)
        width = max(int(part) for part in self._gathered(torch.tensor([len(best.draws)])))
        rows = np.zeros((width, 3), np.int64)  # whether there is one, its score, its draw
        rows[: len(best.draws)] = np.stack(
            [np.ones(len(best.draws), np.int64), best.scores.view(np.int64), best.draws.view(np.int64)], 1
        )
        every = torch.cat(self._gathered(torch.from_numpy(rows))).numpy()
        every = np.ascontiguousarray(every[every[:, 0] == 1].T)
        return Candidates(every[1].view(np.float64), every[2].view(np.uint64)).first(count).draws

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        """The tensors, of equal shape, of all ranks that hold other tokens than this one, its own among them."""
        here = mine.to(self._parallel.device)
        group = self._parallel.dp_cp_group
        parts = [torch.empty_like(here) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, here, group=group)
        return [part.cpu() for part in parts]


def _places(batch: Batch) -> np.ndarray:
    """Group, sample and response token of each position, int64 [n, 3]: the same in every split."""
    names = np.array([*batch.names, (-1, -1)], np.int64)  # the last for the stand-in, whose row is -1
    return np.concatenate([names[batch.places[:, 0]], batch.places[:, 1:]], 1)


def _joined(parts: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([part[mask] for part, mask in zip(parts, masks, strict=True)])


def _with_signals(batch: Batch, found: np.ndarray, chosen: np.ndarray) -> Batch:
    device = batch.tokens.device
    made = batch.with_signal("covariance", torch.from_numpy(found).float().to(device))
    return made.with_signal("covariance_chosen", torch.from_numpy(chosen).float().to(device))
