"""What the scoring passes found, summed over the trained tokens of each sample, for the controller's decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from verst.runtime.messages.step_plan import SampleScore, StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.objective import sequences_of
from verst.runtime.trainer.step.scoring import POLICY_SCORES


@torch.no_grad()
def sample_scores(
    plan: StepPlan, batches: Sequence[Batch], penalties: Sequence[Tensor] | None, parallel: Parallel
) -> list[SampleScore]:
    """The sums of each sample of the step on this data-parallel replica.

    `batches` are scored. `penalties`, if any, have one tensor [n] for each: what each token takes from its sample's
    reward. Collective over the last stage's context-parallel ranks; one rank of each replica returns the samples, the
    others nothing. Raises FloatingPointError, which names the sample, if a sum is not finite: a filter could hide it.
    """
    if not parallel.is_last_stage:
        return []
    found: list[SampleScore] = []
    for number, batch in enumerate(batches):
        columns = _columns(batch)
        if penalties is not None:
            columns["penalty"] = penalties[number]
        sequences = sequences_of(batch, parallel)
        sums = {name: sequences.totals(values).tolist() for name, values in columns.items()}
        for row, (group, index) in enumerate(batch.names):
            mine = {name: values[row] for name, values in sums.items()}
            _refuse_infinite(mine, f"step {plan.step + 1}, sample {index} of group {group}")
            found.append(SampleScore(group=group, index=index, **mine))
    return found if parallel.tp_rank == parallel.cp_rank == 0 else []


def _columns(batch: Batch) -> dict[str, Tensor]:
    """What a filter of the step's samples sees, by the names of `SampleScore`; nothing if there is no filter."""
    signals = batch.signals
    if POLICY_SCORES[0] not in signals:
        return {}
    logprobs, entropy = (signals[name] for name in POLICY_SCORES)
    rollout = signals["rollout_logprobs"]
    others = {name: signals[name] for name in ("reference_logprobs", "teacher_logprobs") if name in signals}
    return {
        "logprobs": logprobs,
        "rollout_logprobs": rollout,
        "difference": (logprobs - rollout).abs(),
        "entropy": entropy,
        **others,
    }


def _refuse_infinite(sums: dict[str, float], place: str) -> None:
    for name, value in sums.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{place}: the sum of {name} over its trained tokens is {value}")
