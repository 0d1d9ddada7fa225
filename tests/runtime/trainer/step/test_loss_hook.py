"""A loss function returns one finite loss for each token; anything else is told and never broadcast."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from verst.runtime.algorithms.losses import PolicyBatch, PolicyLoss, grpo, reinforce
from verst.runtime.hooks.errors import HookError
from verst.runtime.trainer.step.loss_hook import LossHook

ACTION: Callable[[PolicyBatch], Any] = grpo


def loss(batch: PolicyBatch) -> Any:
    return ACTION(batch)


async def asynchronous(batch: PolicyBatch) -> Any:
    return grpo(batch)


def returned(action: Callable[[PolicyBatch], Any]) -> PolicyLoss:
    sys.modules[__name__].ACTION = action  # type: ignore[attr-defined]
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    batch = PolicyBatch(
        logprobs, logprobs.detach(), torch.tensor([1.0, -1.0, 0.5]), clip_low=0.2, clip_high=0.2
    )
    return LossHook(f"{__name__}:loss")(batch, "step 4")


def test_the_bundled_losses_pass() -> None:
    assert returned(grpo).loss.tolist() == [-1.0, 1.0, -0.5]
    assert returned(reinforce).loss.tolist() == [1.0, -2.0, 1.5]


def test_clipped_may_be_a_mask() -> None:
    clipped = returned(lambda batch: PolicyLoss(-batch.logprobs, batch.advantages > 0)).clipped
    assert (clipped.dtype, clipped.tolist()) == (torch.float32, [1.0, 0.0, 1.0])


def zeros(batch: PolicyBatch) -> torch.Tensor:
    return torch.zeros_like(batch.advantages)


WRONG: dict[str, tuple[Callable[[PolicyBatch], Any], str]] = {
    "one": (lambda b: PolicyLoss((-b.logprobs).mean()[None], zeros(b)), "a loss of shape [1] for 3 tokens"),
    "scalar": (lambda b: PolicyLoss((-b.logprobs).mean(), zeros(b)), "a loss of shape [] for 3 tokens"),
    "column": (lambda b: PolicyLoss(-b.logprobs[:, None], zeros(b)), "a loss of shape [3, 1] for 3 tokens"),
    "clipped": (lambda b: PolicyLoss(-b.logprobs, torch.zeros(())), "a clipped of shape [] for 3 tokens"),
    "tensor": (lambda b: -b.logprobs, "not a PolicyLoss"),
    "nothing": (lambda b: None, "returned None, not a PolicyLoss"),
    "number": (lambda b: PolicyLoss(-b.logprobs, 0.0), "returned 0.0 as clipped, not a tensor"),  # type: ignore[arg-type]
    "integers": (lambda b: PolicyLoss(torch.ones(3, dtype=torch.int64), zeros(b)), "a loss of torch.int64"),
    "detached": (lambda b: PolicyLoss(-b.logprobs.detach(), zeros(b)), "a loss without a gradient"),
    "nan": (lambda b: PolicyLoss(b.logprobs * math.nan, zeros(b)), "3 losses that are not finite"),
    "infinite": (lambda b: PolicyLoss(b.logprobs / zeros(b), zeros(b)), "3 losses that are not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_loss_is_told_with_function_step_and_value(case: str) -> None:
    action, message = WRONG[case]
    with pytest.raises(HookError) as caught:
        returned(action)
    assert str(caught.value).startswith(f"loss function '{__name__}:loss', step 4: returned ")
    assert message in str(caught.value)


def test_what_it_raises_is_told_with_its_line() -> None:
    with pytest.raises(
        HookError, match=r"step 4: raised ZeroDivisionError: .+ \(.+test_loss_hook.py:\d+, in"
    ):
        returned(lambda batch: 1 / 0)
    with pytest.raises(HookError, match="is async: here it must be a plain function"):
        LossHook(f"{__name__}:asynchronous")(
            PolicyBatch(torch.zeros(1), torch.zeros(1), torch.zeros(1), 0.2, 0.2), "step 4"
        )
