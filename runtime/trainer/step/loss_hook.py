"""Calls the recipe's loss function and checks its value. A loss of another shape would broadcast silently."""

from __future__ import annotations

import torch
from torch import Tensor

from verst.runtime.algorithms.losses import PolicyBatch, PolicyLoss
from verst.runtime.hooks.frames import shown
from verst.runtime.hooks.hook import Hook


class LossHook:
    """The loss function of the recipe. Raises HookError if it cannot be loaded."""

    def __init__(self, path: str) -> None:
        self._hook = Hook("loss function", path)
        self._place = ""
        self._wrong: Tensor | None = None  # how many losses were not finite, on the device

    def __call__(self, batch: PolicyBatch, place: str) -> PolicyLoss:
        """Returns the losses [n] of a micro-batch's n trained tokens.

        Raises HookError for a wrong type, shape or dtype, and on a CPU for losses that are not finite. On a GPU
        `refuse_infinite` does that later: looking at values now would wait for the device.
        """
        policy = self._hook.call_now(place, batch, check=lambda value: _checked(value, batch.logprobs))
        wrong = (~torch.isfinite(policy.loss.detach())).sum()
        self._wrong = wrong if self._wrong is None else self._wrong + wrong
        self._place = place
        if not policy.loss.is_cuda:
            self.refuse_infinite()
        return policy

    def refuse_infinite(self) -> None:
        """Raises HookError if a loss since the last call was not finite. Call it before the weights are updated."""
        wrong, self._wrong = self._wrong, None
        if wrong is not None and (count := int(wrong)):
            raise self._hook.fault(
                self._place, f"returned {count} losses that are not finite (NaN or infinite)"
            )


def _checked(value: object, logprobs: Tensor) -> PolicyLoss:
    if not isinstance(value, PolicyLoss):
        raise ValueError(f"returned {shown(value)}, not a PolicyLoss")
    dual = {} if value.dual_clipped is None else {"dual_clipped": value.dual_clipped}
    for name, tensor in {"loss": value.loss, "clipped": value.clipped, **dual}.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"returned {shown(tensor)} as {name}, not a tensor")
        if tensor.shape != logprobs.shape:
            raise ValueError(
                f"returned a {name} of shape {list(tensor.shape)} for {len(logprobs)} tokens; it must be "
                f"{list(logprobs.shape)}, one value for each token"
            )
        if tensor.device != logprobs.device:
            raise ValueError(f"returned a {name} on {tensor.device}; it must be on {logprobs.device}")
    if not value.loss.is_floating_point():
        raise ValueError(f"returned a loss of {value.loss.dtype}, not of floating numbers")
    if logprobs.requires_grad and len(logprobs) and not value.loss.requires_grad:
        raise ValueError("returned a loss without a gradient: it must be computed from batch.logprobs")
    return PolicyLoss(
        value.loss,
        value.clipped.detach().to(logprobs.dtype),
        None if value.dual_clipped is None else value.dual_clipped.detach().to(logprobs.dtype),
    )
