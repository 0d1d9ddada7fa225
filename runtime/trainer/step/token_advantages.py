"""Makes an advantage for each token of a step's samples, and what the critic is trained towards, before the step.

`algorithms/returns.py` has the formulas. Here the values of each sample come together over context-parallel ranks, and
the advantages of the step are normalised over all ranks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.critic import CriticConfig
from verst.runtime.algorithms.returns import gae, value_targets
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch

# Where returns vary by less than this share of their size, they are equal but for rounding.
_EQUAL = 1e-12


@dataclass
class _Micro:
    """One micro-batch on a rank of the last stage. Float64 [n] each, but for `trained`."""

    batch: Batch
    values: np.ndarray
    advantages: np.ndarray
    targets: np.ndarray
    trained: np.ndarray  # bool [n]
    penalties: np.ndarray  # what the KL took from each token's reward


class TokenAdvantages:
    """Turns each sample's reward into advantages of its tokens."""

    def __init__(self, algorithm: AlgorithmConfig, critic: CriticConfig, parallel: Parallel) -> None:
        self._algorithm, self._critic, self._parallel = algorithm, critic, parallel

    def __call__(
        self, batches: Sequence[Batch], penalties: Sequence[Tensor] | None
    ) -> tuple[list[Batch], dict[str, float]]:
        """The batches with each token's advantage in place of its sample's reward, and the step's figures.

        The batches have the signal "values" on the last stage, and get "returns" there: what the critic is trained
        towards. `penalties`, if any, have one tensor [n] for each batch: what each token's reward loses. Other stages
        get their batches back as they are. Collective over the world; the figures are equal on every rank.
        """
        micros: list[_Micro] = []
        if self._parallel.is_last_stage:
            taken = penalties or [torch.zeros_like(batch.advantages) for batch in batches]
            micros = [self._of(batch, tokens) for batch, tokens in zip(batches, taken, strict=True)]
        figures, mean, deviation = self._measured(micros)
        if self._algorithm.kl_in == "reward":
            figures["kl_penalty"] = self._mean_penalty(micros)
        if not self._parallel.is_last_stage:
            return list(batches), figures
        return [self._made(micro, mean, deviation) for micro in micros], figures

    def _of(self, batch: Batch, penalties: Tensor) -> _Micro:
        """Estimates the advantages of one micro-batch. Collective over the context-parallel ranks."""
        starts = np.cumsum([0, *batch.lengths])
        rows, tokens = batch.places[:, 0], batch.places[:, 1]
        mine = np.flatnonzero(rows >= 0)  # without the stand-in
        at = starts[rows[mine]] + tokens[mine]
        columns = [batch.signals["values"], penalties, batch.advantages]
        here = torch.stack([c.detach() for c in columns]).double().cpu().numpy()
        # Of each sample's tokens, side by side: value, penalty, the sample's reward, and whether it is trained on.
        whole = np.zeros((4, starts[-1]))
        whole[:3, at], whole[3, at] = here[:, mine], 1
        whole = self._from_all_parts(whole)
        advantages, targets = np.zeros(starts[-1]), np.zeros(starts[-1])
        for begin, end in itertools.pairwise(starts):
            chosen = begin + np.flatnonzero(whole[3, begin:end])
            if len(chosen):
                advantages[chosen], targets[chosen] = self._of_sample(*whole[:3, chosen])
        real = rows >= 0
        trained = batch.trained.cpu().numpy() & real
        made = _Micro(batch, here[0], np.zeros(len(rows)), np.zeros(len(rows)), trained, here[1] * real)
        made.advantages[mine], made.targets[mine] = advantages[at], targets[at]
        return made

    def _of_sample(
        self, values: np.ndarray, penalties: np.ndarray, reward: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advantages and targets of one sample's trained tokens, [T] each. `reward` repeats the sample's."""
        rewards = -penalties
        rewards[-1] += reward[-1]
        critic = self._critic
        targets = value_targets(values, rewards, critic.gamma, critic.target_lam)
        return gae(values, rewards, critic.gamma, critic.lam), targets

    def _from_all_parts(self, whole: np.ndarray) -> np.ndarray:
        if self._parallel.cp_size == 1:
            return whole
        summed = torch.from_numpy(whole).to(self._parallel.device)
        dist.all_reduce(summed, group=self._parallel.cp_group)
        return summed.cpu().numpy()

    def _measured(self, micros: Sequence[_Micro]) -> tuple[dict[str, float], float, float]:
        """The step's figures over its trained tokens, and mean and deviation of the advantages."""

        def column(name: str) -> np.ndarray:
            return np.concatenate([getattr(m, name)[m.trained] for m in micros] or [np.zeros(0)])

        values, targets, advantages = (column(name) for name in ("values", "targets", "advantages"))
        kinds = np.stack([values, targets, advantages, targets - values])
        count = max(1.0, self._sums(np.array([kinds.shape[1]]))[0])
        means = self._sums(kinds.sum(1)) / count
        variances = self._sums(((kinds - means[:, None]) ** 2).sum(1)) / count
        deviation = float(np.sqrt(variances[2]))
        figures = {
            "value_mean": float(means[0]),
            "return_mean": float(means[1]),
            "advantage_mean": float(means[2]),
            "advantage_std": deviation,
        }
        if variances[1] > _EQUAL * (1 + means[1] ** 2):
            figures["value_explained_variance"] = float(1 - variances[3] / variances[1])
        return figures, float(means[2]), deviation

    def _mean_penalty(self, micros: Sequence[_Micro]) -> float:
        """What the KL took from the rewards of a sample, all its tokens together."""
        samples = sum(len(m.batch.names) for m in micros) * (self._parallel.cp_rank == 0)
        total, count = self._sums(np.array([sum(float(m.penalties.sum()) for m in micros), samples]))
        return float(total / max(1.0, count))

    def _sums(self, mine: np.ndarray) -> np.ndarray:
        """Sums over the world. Tensor-parallel ranks hold the same tokens, and stages before the last hold none."""
        counts = self._parallel.tp_rank == 0 and self._parallel.is_last_stage
        total = torch.from_numpy(mine.astype(np.float64) * counts).to(self._parallel.device)
        dist.all_reduce(total)
        return total.cpu().numpy()

    def _made(self, micro: _Micro, mean: float, deviation: float) -> Batch:
        """The micro-batch with its advantages, after `advantage_whiten` and `advantage_clip`."""
        advantages = micro.advantages
        if self._algorithm.advantage_whiten:
            advantages = (advantages - mean) / (deviation + 1e-6)
        if (bound := self._algorithm.advantage_clip) is not None:
            advantages = advantages.clip(-bound, bound)
        device = micro.batch.tokens.device
        made = dataclasses.replace(micro.batch, advantages=torch.from_numpy(advantages).float().to(device))
        return made.with_signal("returns", torch.from_numpy(micro.targets).float().to(device))
