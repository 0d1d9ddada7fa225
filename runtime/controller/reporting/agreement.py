"""Watches, step by step, how far the engines' log-probabilities are from the trainer's."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

from verst.runtime.controller.config import ControllerConfig
from verst.runtime.trainer.step.agreement import BOUNDS, FIGURE, OLDER, suspects

# Tokens of older versions differ also by the updates since, whose size is the run's own: its past steps show it.
_REMEMBERED = 32  # steps
_ENOUGH = 8
_JUMP = (
    8.0  # times the median of those steps; an engine that was away makes all tokens several versions older
)
_IN_A_ROW = 2  # a single step may have an odd batch


class AgreementWatch:
    """Says so when the difference is beyond what is sound, and again only after it has been sound in between.

    In a step with tokens of the version in training the bound is `trainer.max_logprob_diff`, as before the first
    update. In a step without any, as in `one_step_off`, tokens of older versions are held against those of the steps
    before. A difference that grows slowly shows in the figure alone.
    """

    def __init__(self, config: ControllerConfig) -> None:
        bound = config.trainer.max_logprob_diff
        self._dtype = config.model.dtype
        self._bound = BOUNDS[self._dtype] if bound is None else bound
        self._replays = config.algorithm.routing_replay != "off"
        self._beyond = False
        self._sound: deque[float] = deque(maxlen=_REMEMBERED)  # of older tokens
        self._jumps = 0  # steps in a row
        self._said_indirect = False

    def warning(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning about this step for people; None if there is nothing new to say."""
        if FIGURE in metrics:
            difference, why = metrics[FIGURE], f"more than {self._bound:g} (trainer.max_logprob_diff)"
            beyond = not difference <= self._bound  # also a NaN
        elif OLDER in metrics:
            difference = metrics[OLDER]
            usual = median(self._sound) if len(self._sound) >= _ENOUGH else None
            why = f"where {usual or 0:.3g} was usual"
            beyond = self._jumped(difference, usual)
        else:
            return None
        was, self._beyond = self._beyond, beyond
        if was or not beyond:
            return None
        return (
            f"step {step}: the log-probabilities of engines and trainer differ by {difference:.3g} nats per token on "
            f"average, {why}: what is learned from them is biased. {suspects(self._dtype, self._replays)}"
        )

    def remark(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Says once that engines and trainer can no longer be compared on the same weights; None otherwise."""
        if self._said_indirect or FIGURE in metrics or OLDER not in metrics:
            return None
        self._said_indirect = True
        return (
            f"step {step}: no token is of the weights in training, so engines and trainer cannot be compared on the "
            f"same weights, as they were before the first update. Where that is so, {OLDER} is watched: a jump "
            "to several times its usual value is told (engines_disagree), a slow growth is not"
        )

    def _jumped(self, difference: float, usual: float | None) -> bool:
        """Whether tokens of older versions differ by more than `usual`, for some steps now."""
        jump = not difference <= self._bound and usual is not None and not difference <= _JUMP * usual
        self._jumps = self._jumps + 1 if jump else 0
        if not jump and difference == difference:
            self._sound.append(difference)
        return self._jumps >= _IN_A_ROW
