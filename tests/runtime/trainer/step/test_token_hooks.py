"""A loss, correction or divergence returns one finite value for each token; anything else is told, never broadcast."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.runtime.algorithms.token_batches import config, token_batch
from verst.runtime.algorithms.losses import grpo, reinforce
from verst.runtime.algorithms.tokens import TokenBatch, TokenLoss
from verst.runtime.hooks.errors import HookError
from verst.runtime.trainer.step.token_hooks import CorrectionHook, DivergenceHook, LossHook

ACTION: Callable[..., Any] = grpo


def function(*arguments: Any) -> Any:
    return ACTION(*arguments)


async def asynchronous(batch: TokenBatch) -> Any:
    return grpo(batch)


def tokens() -> TokenBatch:
    logprobs = [-1.0, -2.0, -3.0]
    return token_batch(logprobs, advantages=[1.0, -1.0, 0.5], old_logprobs=logprobs, config=config())


def returned(action: Callable[..., Any]) -> TokenLoss:
    sys.modules[__name__].ACTION = action  # type: ignore[attr-defined]
    return LossHook(f"{__name__}:function")(tokens(), "step 4")


def test_the_bundled_losses_pass() -> None:
    assert returned(grpo).loss.tolist() == [-1.0, 1.0, -0.5]
    assert returned(reinforce).loss.tolist() == [1.0, -2.0, 1.5]


def test_a_metric_may_be_a_mask() -> None:
    metric = returned(lambda b: TokenLoss(-b.logprobs, {"positive": b.advantages > 0})).metrics["positive"]
    assert (metric.dtype, metric.tolist()) == (torch.float32, [1.0, 0.0, 1.0])


WRONG: dict[str, tuple[Callable[[TokenBatch], Any], str]] = {
    "one": (lambda b: TokenLoss((-b.logprobs).mean()[None]), "a loss of shape [1] for 3 tokens"),
    "scalar": (lambda b: TokenLoss((-b.logprobs).mean()), "a loss of shape [] for 3 tokens"),
    "column": (lambda b: TokenLoss(-b.logprobs[:, None]), "a loss of shape [3, 1] for 3 tokens"),
    "metric": (
        lambda b: TokenLoss(-b.logprobs, {"x": torch.zeros(())}),
        "a metric 'x' of shape [] for 3 tokens",
    ),
    "tensor": (lambda b: -b.logprobs, "not a TokenLoss"),
    "nothing": (lambda b: None, "returned None, not a TokenLoss"),
    "number": (lambda b: TokenLoss(-b.logprobs, {"x": 0.0}), "returned 0.0 as metric 'x', not a tensor"),  # type: ignore[dict-item]
    "integers": (lambda b: TokenLoss(torch.ones(3, dtype=torch.int64)), "a loss of torch.int64"),
    "detached": (lambda b: TokenLoss(-b.logprobs.detach()), "a loss without a gradient"),
    "metrics": (lambda b: TokenLoss(-b.logprobs, None), "returned None as metrics, not a dict of tensors"),  # type: ignore[arg-type]
    "name": (lambda b: TokenLoss(-b.logprobs, {"a b": b.advantages}), "a metric of the name 'a b'; letters"),
    "nan metric": (
        lambda b: TokenLoss(-b.logprobs, {"x": b.advantages / 0}),
        "3 values of the metric 'x' that are not finite",
    ),
    "nan": (lambda b: TokenLoss(b.logprobs * math.nan), "3 losses that are not finite"),
    "infinite": (lambda b: TokenLoss(b.logprobs / torch.zeros(3)), "3 losses that are not finite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_loss_is_told_with_function_step_and_value(case: str) -> None:
    action, message = WRONG[case]
    with pytest.raises(HookError) as caught:
        returned(action)
    assert str(caught.value).startswith(f"loss function '{__name__}:function', step 4: returned ")
    assert message in str(caught.value)


def test_what_it_raises_is_told_with_its_line() -> None:
    with pytest.raises(
        HookError, match=r"step 4: raised ZeroDivisionError: .+ \(.+test_token_hooks.py:\d+, in"
    ):
        returned(lambda batch: 1 / 0)
    with pytest.raises(HookError, match="is async: here it must be a plain function"):
        LossHook(f"{__name__}:asynchronous")(tokens(), "step 4")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(()), "returned a factor of shape [] for 3 tokens"),
        (1.0, "returned 1.0 as factor, not a tensor"),
        (torch.tensor([1.0, -0.5, 1.0]), "returned 1 factors that are below 0 or not finite"),
        (torch.tensor([1.0, math.inf, math.nan]), "returned 2 factors that are below 0 or not finite"),
    ],
)
def test_a_wrong_correction_is_told(value: Any, message: str) -> None:
    sys.modules[__name__].ACTION = lambda batch: value  # type: ignore[attr-defined]
    with pytest.raises(HookError) as caught:
        CorrectionHook(f"{__name__}:function")(tokens(), "step 4")
    assert message in str(caught.value)


def test_a_correction_has_no_gradient() -> None:
    sys.modules[__name__].ACTION = lambda batch: batch.logprobs.exp()  # type: ignore[attr-defined]
    assert not CorrectionHook(f"{__name__}:function")(tokens(), "step 4").requires_grad


def test_a_divergence_has_one() -> None:
    batch = tokens()
    sys.modules[__name__].ACTION = lambda logprobs, other: (logprobs - other).detach()  # type: ignore[attr-defined]
    with pytest.raises(HookError, match="returned a divergence without a gradient"):
        DivergenceHook(f"{__name__}:function")(batch.logprobs, batch.old_logprobs, "step 4")
