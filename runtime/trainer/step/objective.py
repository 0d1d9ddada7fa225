"""Computes the loss of micro-batches, and the step's metrics with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.losses import PolicyBatch, kl_k3, policy_ratio, sft
from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.agreement import FIGURE
from verst.runtime.trainer.step.loss_hook import LossHook

# Gets each micro-batch and its log-probabilities [n], on the last stage.
Observer = Callable[[Batch, Tensor], None]

_SUMS = (
    "loss",
    "trained",
    "kl_rollout_k3",
    "clip_fraction",
    "dual_clip_fraction",
    "entropy",
    "kl_reference_k3",
    "ratio",
    "own",
    FIGURE,
)


class Objective:
    """The loss function of one step. It also sums the step's metrics over the micro-batches."""

    def __init__(
        self,
        algorithm: AlgorithmConfig,
        plan: StepPlan,
        parallel: Parallel,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._algorithm = algorithm
        self._kind = plan.loss
        self._observers = observers
        self._version = plan.step  # of the weights that the step trains
        self._policy_loss = LossHook(algorithm.loss)
        self._parallel = parallel
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=parallel.device)
        self._largest = torch.zeros((), dtype=torch.float64, device=parallel.device)

    def __call__(self, batch: Batch, logprobs: Tensor, entropy: Tensor) -> Tensor:
        """Returns the micro-batch's share of the step's loss: weight times loss, summed over its tokens."""
        for see in self._observers:
            see(batch, logprobs)
        clipped, dual = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
        ratio = torch.ones_like(logprobs)
        if self._kind == "sft":
            loss = sft(logprobs)
        else:
            old = batch.old_logprobs
            if old is None:
                # The policy that generated the token. For tokens of this version that is the policy being
                # trained. There the trainer's own value keeps the engine's rounding out of the ratio.
                # A version of an abandoned life is -1: it may have this number, but was another policy.
                own = batch.versions == self._version
                old = torch.where(own, logprobs.detach(), batch.rollout_logprobs)
            policy = self._policy_loss(
                PolicyBatch(
                    logprobs=logprobs,
                    old_logprobs=old,
                    advantages=batch.advantages,
                    clip_low=self._algorithm.clip_low,
                    clip_high=self._algorithm.clip_high,
                    clip_ratio_c=self._algorithm.clip_ratio_c,
                ),
                f"step {self._version + 1}",
            )
            loss, clipped, ratio = policy.loss, policy.clipped, policy_ratio(logprobs.detach(), old)
            dual = dual if policy.dual_clipped is None else policy.dual_clipped
            if self._algorithm.entropy_coef:
                loss = loss - self._algorithm.entropy_coef * entropy
            if batch.reference_logprobs is not None:
                loss = loss + self._algorithm.kl_coef * kl_k3(logprobs, batch.reference_logprobs)
        total = (batch.weights * loss).sum()
        self._measure(batch, total.detach(), logprobs.detach(), entropy.detach(), clipped, dual, ratio)
        return total

    def refuse_infinite(self) -> None:
        """Raises HookError if the loss function returned NaN or infinity. Call it before the weights are updated."""
        self._policy_loss.refuse_infinite()

    @torch.no_grad()
    def _measure(
        self,
        batch: Batch,
        total: Tensor,
        logprobs: Tensor,
        entropy: Tensor,
        clipped: Tensor,
        dual: Tensor,
        ratio: Tensor,
    ) -> None:
        real = batch.weights > 0
        k3 = kl_k3(batch.rollout_logprobs, logprobs)
        reference = torch.zeros_like(logprobs)
        if batch.reference_logprobs is not None:
            reference = kl_k3(logprobs, batch.reference_logprobs)
        # Only tokens of this version: older ones differ because the weights have changed.
        own = (batch.versions == self._version).float()
        difference = own * (logprobs - batch.rollout_logprobs).abs()
        per_token = (
            torch.stack([real.float(), k3, clipped, dual, entropy, reference, ratio, own, difference]) * real
        )
        self._sums += torch.cat([total[None].double(), per_token.double().sum(1)])
        differences = ((logprobs - batch.rollout_logprobs).abs() * real).max()
        self._largest = torch.maximum(self._largest, differences.double())

    def reduce(self) -> tuple[float, dict[str, float]]:
        """Returns the step's loss, and its metrics as means over all trained tokens; equal on every rank.

        Collective over the world.
        """
        # Tensor-parallel ranks hold the same tokens, and stages before the last hold no sums.
        counted = self._parallel.tp_rank == 0 and self._parallel.is_last_stage
        sums = self._sums * counted
        largest = self._largest.clone()
        dist.all_reduce(sums)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        values: dict[str, Any] = dict(zip(_SUMS, sums.tolist(), strict=True))
        loss, trained = values.pop("loss"), max(1.0, values.pop("trained"))
        own, difference = values.pop("own"), values.pop(FIGURE)
        metrics = {name: value / trained for name, value in values.items()}
        if own and self._kind != "sft":
            metrics[FIGURE] = difference / own
        metrics["logprob_max_diff"] = largest.item()
        metrics["trained_tokens"] = trained
        if self._kind == "sft" or not self._algorithm.kl_coef:
            del metrics["kl_reference_k3"]
        if self._kind == "sft" or self._algorithm.clip_ratio_c is None:
            del metrics["dual_clip_fraction"]
        if self._kind == "sft":
            # Demonstrations were not sampled from any policy.
            for name in ("kl_rollout_k3", "logprob_max_diff", "clip_fraction", "ratio"):
                del metrics[name]
        return loss, metrics
