"""What becomes of a call of a reward that fails: the run ends, the group is dropped, or the recipe gives a score."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.limits import Limits

log = logging.getLogger(__name__)

_LOST = ("late", "died")


class RewardFailedError(Exception):
    """A call of the reward failed, and the recipe says to drop the group. The message is the hook's error."""


class ScoredFailure(Exception):
    """A call failed, and counts as `value`."""

    def __init__(self, value: float, *, of_function: bool) -> None:
        """`of_function`: the bundled function scores a lost call itself. Else the recipe scores the whole sample."""
        super().__init__(value)
        self.value, self.of_function = value, of_function


@dataclass
class Failures:
    """The recipe's `rollout.reward_failure` and `reward_retries`, and how many calls for training were scored so."""

    failure: Literal["fail", "drop"] | float = "fail"
    retries: int = 0
    scored: int = 0

    async def attempt[T](
        self, call: Callable[[], Awaitable[T]], limits: Limits, place: str, *, evaluation: bool
    ) -> T:
        """Calls one function, again if it fails and the recipe says so.

        Raises HookError if it fails and the recipe gives failures no score, ScoredFailure if it gives one, and
        RewardFailedError if it drops the group. In an evaluation, which can drop nothing, such a call is scored 0. A
        label that the function cannot use is never scored: it is the data's fault.
        """
        attempts = 0
        while True:
            attempts += 1
            try:
                return await call()
            except HookError as error:
                # A process may also die of something else, such as another's appetite for memory.
                again = self.retries if limits.lost is None or error.kind != "died" else max(1, self.retries)
                if error.kind in ("label", "load"):
                    raise
                if attempts > again:
                    raise self._outcome(error, limits, place, evaluation) from error
                log.warning("attempt %d failed: %s; trying again", attempts, error)

    def _outcome(self, error: HookError, limits: Limits, place: str, evaluation: bool) -> Exception:
        of_function = limits.lost is not None and error.kind in _LOST
        score = limits.lost if limits.lost is not None and of_function else self.failure
        if score == "fail":
            return error
        if score == "drop":
            if not evaluation:
                return RewardFailedError(str(error))
            score = 0.0
        self.scored += not evaluation
        log.warning("%s is scored %g", place, score)
        return ScoredFailure(float(score), of_function=of_function)

    def take(self) -> int:
        """How many calls for training have failed and were scored nevertheless, since this was last asked."""
        taken, self.scored = self.scored, 0
        return taken
