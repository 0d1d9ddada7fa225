"""Functions on the trainer's ranks, as a recipe names them. They note what they are told in this process."""

from __future__ import annotations

from typing import Any

import torch

from verst.runtime.hooks.happenings import AroundUpdate, BeforeLogprobs

TOLD: list[tuple[Any, ...]] = []


def first_weights(model: Any) -> float:
    """A number that changes with the weights of the first parameter."""
    return float(next(iter(model[0].parameters())).detach().double().abs().sum())


def before(told: BeforeLogprobs) -> None:
    TOLD.append(("logprobs", told.step, told.rank, told.weights, first_weights(told.model)))


def begins(told: AroundUpdate) -> None:
    TOLD.append(
        ("begins", told.step, told.rank, told.weights, told.update, told.updates, first_weights(told.model))
    )


def ended(told: AroundUpdate) -> None:
    rate = told.optimizer.param_groups[0]["lr"]
    TOLD.append(("ended", told.step, told.rank, told.weights, told.update, rate, first_weights(told.model)))


def zeroes_all(told: AroundUpdate) -> None:
    """Makes every token as likely as every other."""
    with torch.no_grad():
        for chunk in told.model:
            for parameter in chunk.parameters():
                parameter.zero_()


def fails_in_the_second_update(told: AroundUpdate) -> None:
    if told.update == 2:
        raise OSError("the disk is full")
