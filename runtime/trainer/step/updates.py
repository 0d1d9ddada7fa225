"""The figures of a step's updates, and what the step reports of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from verst.runtime.messages.step_plan import StepPlan


@dataclass(frozen=True)
class Update:
    """One update of the optimizer."""

    loss: float
    grad_norm: float
    lr: float
    metrics: dict[str, float]


def of_step(updates: Sequence[Update], plan: StepPlan) -> Update:
    """Means over the updates of a step, each metric over those that have it.

    Learning rates are those of the last, and the number of trained tokens that of the batch.
    """
    names = dict.fromkeys(name for update in updates for name in update.metrics)
    metrics = {name: fmean(u.metrics[name] for u in updates if name in u.metrics) for name in names}
    if "critic_lr" in metrics:
        metrics["critic_lr"] = updates[-1].metrics["critic_lr"]
    if "trained_tokens" in metrics:  # a reward model scores whole answers
        metrics["trained_tokens"] = sum(u.metrics["trained_tokens"] for u in updates) / plan.epochs
    return Update(
        fmean(update.loss for update in updates),
        fmean(update.grad_norm for update in updates),
        updates[-1].lr,
        metrics,
    )


def with_critic(policy: Update, critic: Update) -> Update:
    """The policy's update with the critic's figures beside its own."""
    own = {"critic_grad_norm": critic.grad_norm, "critic_lr": critic.lr}
    return Update(policy.loss, policy.grad_norm, policy.lr, policy.metrics | critic.metrics | own)


def name_of(plan: StepPlan, number: int) -> str:
    """The update in words: "step 3", or "step 3, update 2 of 4"."""
    count = len(plan.updates)
    return f"step {plan.step + 1}" + (f", update {number + 1} of {count}" if count > 1 else "")
