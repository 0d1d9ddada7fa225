"""The terms of a step's objective: the loss of each token in each of them, with the figures that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.distillation import reverse_kl, with_teacher
from verst.runtime.algorithms.divergences import k3
from verst.runtime.algorithms.losses import policy_ratio, sft
from verst.runtime.algorithms.preferences import pair_loss
from verst.runtime.algorithms.stages import DpoStage
from verst.runtime.algorithms.tokens import TokenBatch, TokenLoss
from verst.runtime.messages.step_plan import StepPlan, TermName
from verst.runtime.trainer.step.token_hooks import CorrectionHook, DivergenceHook, LossHook


@dataclass(frozen=True)
class PairLoss(TokenLoss):
    """The loss of pairs, spread over their tokens. Its figures are means over pairs."""

    share: Tensor = field(
        kw_only=True
    )  # [n], what the token counts in these means: 1 / the tokens of its pair


class Term(Protocol):
    """Computes the loss of each token. Its figures are means over the tokens with a weight in this term, or over their
    pairs."""

    def __call__(self, batch: TokenBatch) -> TokenLoss:
        """Returns losses and figures, [n] each."""
        ...

    def refuse_infinite(self) -> None:
        """Raises HookError if a function of the recipe returned NaN or infinity. Call it before the update."""
        ...


class PolicyTerm:
    """Reinforcement learning: the recipe's loss, its correction, the entropy bonus and the KL from the reference."""

    def __init__(self, algorithm: AlgorithmConfig, step: int, kl_coef: float) -> None:
        """`step` counts from 0. Raises HookError if a function of the recipe cannot be loaded."""
        self._algorithm = algorithm
        self._kl_coef = kl_coef
        self._place = f"step {step + 1}"
        self._loss = LossHook(algorithm.loss)
        self._correction = CorrectionHook(algorithm.correction) if algorithm.correction else None
        in_loss = algorithm.kl_coef and algorithm.kl_in == "loss"
        self._divergence = DivergenceHook(algorithm.kl) if in_loss else None
        # Figures of a user's own loss stand apart, so that none hides one of ours.
        self._prefix = "" if algorithm.loss.startswith("verst.") else "own/"

    def __call__(self, batch: TokenBatch) -> TokenLoss:
        """The loss, times the correction, minus the entropy bonus, plus the KL. A teacher adds to the advantages."""
        teacher = self._algorithm.teacher
        if teacher is not None:
            batch = with_teacher(batch, teacher.coef)
        found = self._loss(batch, self._place)
        loss, metrics = found.loss, {f"{self._prefix}{name}": m for name, m in found.metrics.items()}
        if self._correction is not None:
            factor = self._correction(batch, self._place)
            loss = factor * loss
            metrics |= {
                "correction_mean": factor,
                "correction_square": factor.square(),
                "correction_zero": (factor == 0).float(),
            }
        if self._algorithm.entropy_coef:
            loss = loss - self._algorithm.entropy_coef * batch.entropy
        if self._divergence is not None:
            loss = loss + self._kl_coef * self._kl(batch)
        if self._algorithm.kl_coef:
            metrics["kl_reference_k3"] = k3(batch.logprobs.detach(), batch.signals["reference_logprobs"])
        if teacher is not None:
            metrics["kl_teacher"] = reverse_kl(batch)
        metrics["ratio"] = policy_ratio(batch.logprobs.detach(), batch.old_logprobs)
        return TokenLoss(loss, metrics)

    def refuse_infinite(self) -> None:
        """As in `Term`."""
        for hook in (self._loss, self._correction, self._divergence):
            if hook is not None:
                hook.refuse_infinite()

    def _kl(self, batch: TokenBatch) -> Tensor:
        assert self._divergence is not None
        kl = self._divergence(batch.logprobs, batch.signals["reference_logprobs"], self._place)
        return kl * policy_ratio(batch.logprobs, batch.old_logprobs) if self._algorithm.kl_importance else kl


class SftTerm:
    """Imitation: the negative log-likelihood of the tokens."""

    def __call__(self, batch: TokenBatch) -> TokenLoss:
        """-log p of each token."""
        return TokenLoss(sft(batch.logprobs))

    def refuse_infinite(self) -> None:
        """As in `Term`: there is no function of the recipe."""


class DpoTerm:
    """Preferences: the loss of each pair, spread over the tokens of its two answers.

    The advantage of a token is 1 in the chosen answer and -1 in the rejected one. With weights of 1 / pairs the
    weighted sum over tokens is the mean loss over pairs, and its gradient that of this loss.
    """

    def __init__(self, stage: DpoStage) -> None:
        self._stage = stage

    def __call__(self, batch: TokenBatch) -> PairLoss:
        """The loss of `algorithms/preferences.py`, and the rewards that it implies: beta times log-ratios."""
        beta, sign, pairs = self._stage.beta, batch.advantages, batch.sequences.pairs()
        log_ratio = batch.logprobs.detach() - batch.signals["reference_logprobs"]
        chosen, rejected = pairs.sum((sign > 0) * log_ratio), pairs.sum((sign < 0) * log_ratio)
        # Not from the two above: their rounding may be larger than the difference.
        difference = pairs.sum(sign * log_ratio)
        loss, slope = pair_loss(difference, self._stage)
        share = 1 / pairs.sum(torch.ones_like(log_ratio)).clamp(min=1)
        through = batch.logprobs - batch.logprobs.detach()  # 0, with the gradient of the log-probability
        metrics = {
            "dpo_accuracy": (difference > 0).float(),
            "dpo_margin": beta * difference,
            "dpo_chosen_reward": beta * chosen,
            "dpo_rejected_reward": beta * rejected,
        }
        return PairLoss(share * loss + slope * sign * through, metrics, share=share)

    def refuse_infinite(self) -> None:
        """As in `Term`: there is no function of the recipe."""


def make_terms(plan: StepPlan, algorithm: AlgorithmConfig, kl_coef: float) -> dict[TermName, Term]:
    """The terms of a step plan that train the policy, in its order."""
    return {name: _term(name, plan, algorithm, kl_coef) for name in plan.terms if name != "value"}


def _term(name: TermName, plan: StepPlan, algorithm: AlgorithmConfig, kl_coef: float) -> Term:
    if name == "policy":
        return PolicyTerm(algorithm, plan.step, kl_coef)
    if name == "sft":
        return SftTerm()
    stage = None if plan.stage is None else algorithm.stages[plan.stage]
    if not isinstance(stage, DpoStage):
        raise ValueError(
            f"step {plan.step + 1} has pairs, but stage {plan.stage} of the recipe is not of kind dpo"
        )
    return DpoTerm(stage)
