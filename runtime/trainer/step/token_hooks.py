"""Calls the functions of a recipe that see a micro-batch's tokens, and checks their values.

A value of another shape would broadcast silently. Values that are not finite are told before the weights are updated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from verst.runtime.algorithms.tokens import TokenBatch, TokenLoss
from verst.runtime.hooks.frames import shown
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.values import checked_name


class TokenHook:
    """A function of the recipe that returns one value for each token. Raises HookError if it cannot be loaded."""

    def __init__(self, what: str, path: str, wrong: str) -> None:
        """`what` names the function in messages ("loss function"), `wrong` the values that it may not return."""
        self._hook = Hook(what, path)
        self._wrong_values = wrong
        self._place = ""
        self._wrong: dict[str, Tensor] = {}  # how many values of each kind were wrong, on the device

    def refuse_infinite(self) -> None:
        """Raises HookError if a value since the last call was not finite. Call it before the weights are updated."""
        wrong, self._wrong = self._wrong, {}
        for kind, found in wrong.items():
            if count := int(found):
                raise self._hook.fault(self._place, f"returned {count} {kind}")

    def _called[T](self, place: str, *arguments: Any, check: Callable[[Any], T]) -> T:
        self._place = place
        return self._hook.call_now(place, *arguments, check=check)

    def _watch(self, values: Tensor, kind: str | None = None) -> None:
        """Counts the values that are not finite; on a GPU `refuse_infinite` looks: now would wait for the device."""
        kind = kind or self._wrong_values
        wrong = (~torch.isfinite(values.detach())).sum()
        self._wrong[kind] = self._wrong[kind] + wrong if kind in self._wrong else wrong
        if not values.is_cuda:
            self.refuse_infinite()


class LossHook(TokenHook):
    """The policy loss of the recipe."""

    def __init__(self, path: str) -> None:
        super().__init__("loss function", path, "losses that are not finite (NaN or infinite)")

    def __call__(self, batch: TokenBatch, place: str) -> TokenLoss:
        """Returns the losses [n] of a micro-batch's n trained tokens, and figures.

        Raises HookError for a wrong type, shape or dtype, and for losses that are not finite (on a GPU later).
        """
        found = self._called(place, batch, check=lambda value: _loss(value, batch.logprobs))
        self._watch(found.loss)
        for name, values in found.metrics.items():
            self._watch(values, f"values of the metric {name!r} that are not finite")
        return found


class CorrectionHook(TokenHook):
    """The correction of the recipe: a factor for each token's loss."""

    def __init__(self, path: str) -> None:
        super().__init__("correction function", path, "factors that are below 0 or not finite")

    def __call__(self, batch: TokenBatch, place: str) -> Tensor:
        """Returns the factors, fp32 [n], without gradient. Raises HookError as `LossHook`, and for one below 0."""
        found = self._called(
            place, batch, check=lambda value: _floating("factor", value, batch.logprobs).detach()
        )
        self._watch(torch.where(found < 0, torch.nan, found))
        return found


class DivergenceHook(TokenHook):
    """The estimate of the divergence from the reference at each token."""

    def __init__(self, path: str) -> None:
        super().__init__("divergence function", path, "values that are not finite (NaN or infinite)")

    def __call__(self, logprobs: Tensor, other: Tensor, place: str) -> Tensor:
        """Returns the estimates, fp32 [n], with gradients. Raises HookError as `LossHook`."""

        def check(value: Any) -> Tensor:
            return _with_gradient("divergence", _floating("divergence", value, logprobs), logprobs)

        found = self._called(place, logprobs, other, check=check)
        self._watch(found)
        return found


def _loss(value: object, logprobs: Tensor) -> TokenLoss:
    if not isinstance(value, TokenLoss):
        raise ValueError(f"returned {shown(value)}, not a TokenLoss")
    loss = _with_gradient("loss", _floating("loss", value.loss, logprobs), logprobs)
    if not isinstance(value.metrics, Mapping):
        raise ValueError(f"returned {shown(value.metrics)} as metrics, not a dict of tensors")
    metrics = {
        checked_name("metric", name): _per_token(f"metric {name!r}", tensor, logprobs)
        .detach()
        .to(logprobs.dtype)
        for name, tensor in value.metrics.items()
    }
    return TokenLoss(loss, metrics)


def _per_token(what: str, value: object, logprobs: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"returned {shown(value)} as {what}, not a tensor")
    if value.shape != logprobs.shape:
        raise ValueError(
            f"returned a {what} of shape {list(value.shape)} for {len(logprobs)} tokens; it must be "
            f"{list(logprobs.shape)}, one value for each token"
        )
    if value.device != logprobs.device:
        raise ValueError(f"returned a {what} on {value.device}; it must be on {logprobs.device}")
    return value


def _floating(what: str, value: object, logprobs: Tensor) -> Tensor:
    tensor = _per_token(what, value, logprobs)
    if not tensor.is_floating_point():
        raise ValueError(f"returned a {what} of {tensor.dtype}, not of floating numbers")
    return tensor


def _with_gradient(what: str, tensor: Tensor, logprobs: Tensor) -> Tensor:
    if logprobs.requires_grad and len(logprobs) and not tensor.requires_grad:
        raise ValueError(
            f"returned a {what} without a gradient: it must be computed from the log-probabilities"
        )
    return tensor
