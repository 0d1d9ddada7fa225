"""A group reward scores all answers to a prompt; its failures mean what the recipe says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.pool import HookPool
from verst.runtime.hooks.score import Score
from verst.runtime.rewards import Answer, RewardFailedError
from verst.runtime.rewards.failures import Failures
from verst.runtime.rewards.group import GroupReward

ANSWERS = [Answer(text="a", label="1"), Answer(text="bbb", score=Score(0.5, {"right": 1.0}))]


def by_rank(answers: list[Answer]) -> list[Any]:
    """Fails as the first answer's label says."""
    match answers[0].label:
        case "none":
            return None  # type: ignore[return-value]
        case "few":
            return [1.0]
        case "nan":
            return [1.0, float("nan")]
        case "raise":
            raise ConnectionError("no judge")
    order = sorted(answers, key=lambda answer: len(answer.text))
    return [order.index(answers[0]), Score(order.index(answers[1]), {"rank": 7.0})]


def scored(label: str = "1", evaluation: bool = False, **policy: Any) -> tuple[Any, int]:
    """The scores or the error, and the failures that were counted."""
    first = Answer(text="a", label=label, evaluation=evaluation)

    async def run() -> tuple[Any, int]:
        pool = HookPool(
            "group reward", f"{__name__}:by_rank", processes=1, timeout_s=60, memory_bytes=1 << 30
        )
        async with GroupReward(pool, Failures(**policy)) as reward:
            try:
                return await reward.score([first, ANSWERS[1]], place="group 3"), reward.take_failures()
            except (HookError, RewardFailedError) as error:
                return error, reward.take_failures()

    return asyncio.run(run())


def test_each_answer_gets_its_score_and_keeps_what_its_own_reward_gave() -> None:
    scores, failures = scored()
    assert scores == [Score(0.0), Score(1.0, {"right": 1.0, "alone": 0.5, "rank": 7.0})]
    assert failures == 0


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("none", "returned None, not a list of one reward for each answer"),
        ("few", "returned 1 rewards for 2 answers"),
        ("nan", "returned nan, not a finite number"),
        ("raise", "raised ConnectionError: no judge"),
    ],
)
def test_a_wrong_value_is_told_with_hook_and_group(label: str, told: str) -> None:
    error, _ = scored(label)
    assert isinstance(error, HookError)
    assert str(error).startswith(f"group reward '{__name__}:by_rank', group 3: {told}")


def test_a_failure_is_scored_or_drops_the_group_as_the_recipe_says() -> None:
    assert scored("raise", failure=-1.0) == ([Score(-1.0), Score(-1.0)], 1)
    assert isinstance(scored("raise", failure="drop")[0], RewardFailedError)
    assert scored("raise", failure="drop", evaluation=True) == ([Score(0.0), Score(0.0)], 0)
