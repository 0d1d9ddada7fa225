"""A reward of several functions: their weighted sum, its parts, and what a failure of one means."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.score import Score
from verst.runtime.rewards import RewardFailedError
from verst.runtime.rewards.config import RewardPart, RewardParts
from verst.runtime.rewards.score import RewardFunction

REWARDS, FUNCTIONS = "verst.runtime.rewards", "tests.runtime.hooks.functions"
PARTS = [
    {"function": f"{REWARDS}:exact_match", "weight": 2.0},
    {"function": f"{REWARDS}:overlong", "name": "length", "weight": 0.5, "arguments": {"limit": 10, "buffer": 4}},
    {"function": f"{REWARDS}:format", "weight": 0, "arguments": {"pattern": "(?P<digit>[0-9])"}},
]  # fmt: skip


def scored(parts: list[dict[str, Any]], *answers: Answer, **policy: Any) -> list[Any]:
    async def run() -> tuple[list[Any], int]:
        made = [RewardPart(**part) for part in parts]
        async with RewardFunction(made, **{"timeout_s": 30, "processes": 1} | policy) as reward:
            calls = [reward.score(answer, place="sample 1 of group 2") for answer in answers]
            return await asyncio.gather(*calls, return_exceptions=True), reward.take_failures()

    found, failures = asyncio.run(run())
    return [*found, failures]


def test_the_weighted_sum_has_each_value_as_a_part() -> None:
    right, wrong, _ = scored(
        PARTS, Answer(text="7", label="7", ids=[1] * 8), Answer(text="x", label="7", ids=[1] * 20)
    )
    assert right == Score(
        2.0 - 0.25, {"exact_match": 1.0, "length": -0.5, "format": 1.0, "format.digit": 1.0}
    )
    assert wrong == Score(-0.5, {"exact_match": 0.0, "length": -1.0, "format": 0.0, "format.digit": 0.0})


def test_a_failure_of_one_function_is_a_failure_of_the_sum() -> None:
    parts = [{"function": f"{REWARDS}:exact"}, {"function": f"{FUNCTIONS}:by_label"}]
    error, _ = scored(parts, Answer(text="7", label="raise"))
    assert isinstance(error, HookError)
    assert str(error).startswith(
        f"reward function '{FUNCTIONS}:by_label', sample 1 of group 2: raised KeyError"
    )
    assert scored(parts, Answer(text="7", label="raise"), failure=-3.0) == [Score(-3.0), 1]
    dropped, _ = scored(parts, Answer(text="7", label="raise"), failure="drop")
    assert isinstance(dropped, RewardFailedError)


def test_a_part_of_a_part_never_takes_the_place_of_a_functions_value() -> None:
    """Names are cut after 60 letters, and may themselves have a point."""
    form = {"function": f"{REWARDS}:format", "arguments": {"pattern": "(?P<digit>[0-9])"}}
    parts = [
        {"function": f"{REWARDS}:exact_match", "name": "a.digit"},
        form | {"name": "a"},
        form | {"name": "n" * 60},
    ]
    right, _ = scored(parts, Answer(text="7", label="8"))
    assert right == Score(2.0, {"a.digit": 0.0, "a": 1.0, "n" * 60: 1.0})
    wrong, _ = scored([form | {"name": "n" * 60, "arguments": {"pattern": "(?P<digit>)7"}}], Answer(text="7"))
    assert wrong == Score(1.0, {"n" * 60: 1.0})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"limit": 10}, "its arguments: missing a required argument: 'buffer'"),
        ({"limit": 10, "bufer": 4}, "its arguments: missing a required argument: 'buffer'"),
        ({"limit": 10, "buffer": 4, "x": 1}, "its arguments: got an unexpected keyword argument 'x'"),
        ({"limit": 10, "buffer": 11}, "its arguments: buffer must be between 1 and limit, 10; it is 11"),
    ],
)  # fmt: skip
def test_wrong_arguments_end_the_run_at_its_start(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(HookError) as caught:
        scored([{"function": f"{REWARDS}:overlong", "arguments": arguments}], Answer(text=""))
    assert (caught.value.kind, str(caught.value)) == ("load", f"reward function '{REWARDS}:overlong': {said}")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "name at least one function"),
        ([{"function": "a:f"}, {"function": "b:f"}], "two parts have the name 'f'; give them a `name` each"),
        ([{"function": "a:f", "name": "a b"}], "the name 'a b' must be letters"),
        ([{"function": "a:f", "wait": 1}], "Extra inputs are not permitted"),
        ([{"function": "a:f", "weight": float("nan")}], "finite number"),
    ],
)  # fmt: skip
def test_a_recipe_names_parts_soundly(parts: list[Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(RewardParts).validate_python(parts)
