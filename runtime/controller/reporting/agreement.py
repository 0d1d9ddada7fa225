"""Watches, step by step, how far the engines' log-probabilities are from the trainer's."""

from __future__ import annotations

from collections.abc import Mapping

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.trainer.step.agreement import BOUNDS, FIGURE, suspects


class AgreementWatch:
    """Says so when the difference goes beyond the bound, and again only after it has been within it."""

    def __init__(self, config: ControllerConfig) -> None:
        bound = config.trainer.max_logprob_diff
        self._dtype = config.model.dtype
        self._bound = BOUNDS[self._dtype] if bound is None else bound
        self._replays = config.algorithm.routing_replay != "off"
        self._beyond = False

    def warning(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning about this step for people; None if there is nothing new to say."""
        difference = metrics.get(FIGURE)
        if difference is None:
            return None
        was, self._beyond = self._beyond, not difference <= self._bound
        if was or not self._beyond:
            return None
        return (
            f"step {step}: the log-probabilities of engines and trainer differ by {difference:.3g} nats per token on "
            f"average, more than {self._bound:g} (trainer.max_logprob_diff): what is learned from them is biased. "
            f"{suspects(self._dtype, self._replays)}"
        )
