"""The KL from the reference as a penalty on rewards (`algorithm.kl_in: reward`): what it takes from each sample's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verst.runtime.messages.step_plan import SamplePenalty, StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.objective import sequences_of
from verst.runtime.trainer.step.token_hooks import DivergenceHook


@torch.no_grad()
def penalties(
    plan: StepPlan, batches: Sequence[Batch], divergence: DivergenceHook, kl_coef: float, parallel: Parallel
) -> list[SamplePenalty]:
    """`kl_coef` times the divergence of the old policy from the reference, summed over each sample's trained tokens.

    `batches` are scored. Collective over the last stage's context-parallel ranks; one rank of each data-parallel
    replica returns the samples, the others nothing. Raises HookError if a value of the divergence is not finite.
    """
    if not parallel.is_last_stage:
        return []
    found = []
    for batch, kl in zip(batches, divergences(plan, batches, divergence), strict=True):
        sums = sequences_of(batch, parallel).totals(kl)[: len(batch.names)].tolist()
        found += [
            SamplePenalty(group, index, kl_coef * total)
            for (group, index), total in zip(batch.names, sums, strict=True)
        ]
    return found if parallel.tp_rank == parallel.cp_rank == 0 else []


@torch.no_grad()
def divergences(plan: StepPlan, batches: Sequence[Batch], divergence: DivergenceHook) -> list[Tensor]:
    """The divergence of the old policy from the reference at each token, fp32 [n] for each batch.

    `batches` are scored; call it on the last stage. Raises HookError if a value of the divergence is not finite.
    """
    found = [
        divergence(b.signals["old_logprobs"], b.signals["reference_logprobs"], f"step {plan.step + 1}")
        for b in batches
    ]
    divergence.refuse_infinite()
    return found
