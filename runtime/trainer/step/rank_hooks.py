"""Calls the recipe's functions that work on this rank's part of a model: the keys `ON_RANKS` of the section `hooks`.

They run in the main thread, where all of the rank's torch calls are made: a hang is one of the step's, which
`trainer.step_timeout_s` ends.
"""

from __future__ import annotations

from typing import Any

from torch.nn import Module

from verst.runtime.hooks.config import HooksConfig
from verst.runtime.hooks.happenings import AroundUpdate, BeforeLogprobs
from verst.runtime.hooks.hook import Hook
from verst.runtime.trainer.model.trained_model import TrainedModel


class RankHooks:
    """The functions by their key. Raises HookError if one cannot be loaded."""

    def __init__(self, config: HooksConfig, rank: int) -> None:
        self._rank = rank
        self._hooks = {name: Hook(f"hook {name}", path) for name, path in config.on_ranks().items()}

    def before_logprobs(self, version: int, weights: str, model: list[Module]) -> None:
        """Tells that log-probabilities are computed next, in the step on this version. `weights` names what is in
        `model`. Raises HookError if the function fails."""
        if "before_logprobs" in self._hooks:
            step = version + 1
            told = BeforeLogprobs(step=step, rank=self._rank, weights=weights, model=tuple(model))
            self._call("before_logprobs", f"step {step}, rank {self._rank}, {weights}", told)

    def around_update(
        self, key: str, version: int, number: int, count: int, weights: str, trained: TrainedModel
    ) -> None:
        """Tells "before_update" or "after_update" of update `number` (from 0) of `count`, as `before_logprobs` does."""
        if key in self._hooks:
            step = version + 1
            told = AroundUpdate(
                step=step,
                rank=self._rank,
                update=number + 1,
                updates=count,
                weights=weights,
                model=tuple(trained.chunks),
                optimizer=trained.optimizer,
                scheduler=trained.scheduler,
            )
            place = f"step {step}, rank {self._rank}, update {number + 1} of {count} of the {weights}"
            self._call(key, place, told)

    def _call(self, key: str, place: str, told: Any) -> None:
        self._hooks[key].call_now(place, told, check=lambda value: None)
