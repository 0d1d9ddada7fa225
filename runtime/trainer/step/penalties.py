"""The KL from the reference as a penalty on rewards (`algorithm.kl_in: reward`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verst.runtime.messages.step_plan import StepPlan
from verst.runtime.trainer.share.batch import Batch
from verst.runtime.trainer.step.token_hooks import DivergenceHook


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
