"""Scores all answers to a prompt together, with a function of the recipe that runs in processes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.pool import HookPool
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.failures import Failures, ScoredFailure

_ALONE = "alone"  # the part that holds what `rollout.reward` gave


class GroupReward:
    """The recipe's `rollout.group_reward`. `async with` starts and ends its processes."""

    def __init__(self, pool: HookPool, failures: Failures) -> None:
        self._pool = pool
        self._failures = failures

    async def __aenter__(self) -> Self:
        """Raises HookError if the function cannot be loaded."""
        await self._pool.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._pool.close()

    async def score(self, answers: Sequence[Answer], *, place: str) -> list[Score]:
        """Returns the reward of each answer to a prompt, with its parts.

        Where `rollout.reward` scored the answers first (`Answer.score`), its parts stay, and its value is the part
        `alone`. Raises HookError and RewardFailedError as a reward of single answers does.
        """
        try:
            scores = await self._failures.attempt(
                lambda: self._pool.call_group(place, list(answers)),
                self._pool.limits,
                place,
                evaluation=any(answer.evaluation for answer in answers),
            )
        except ScoredFailure as failure:
            return [Score(failure.value)] * len(answers)
        return [_with_earlier(score, answer.score) for score, answer in zip(scores, answers, strict=True)]

    def take_failures(self) -> int:
        """How many calls for training have failed and were scored nevertheless, since this was last asked."""
        return self._failures.take()


def _with_earlier(score: Score, earlier: Score | None) -> Score:
    if earlier is None:
        return score
    return Score(score.value, earlier.parts | {_ALONE: earlier.value} | score.parts)
