"""Built-in rewards score what they say; no text of a model stops them, and a failure means what the recipe says."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest

from verst.runtime.hooks.dotted import load
from verst.runtime.hooks.errors import HookError, LabelError
from verst.runtime.hooks.score import Score
from verst.runtime.rewards import (
    Answer,
    RewardFailedError,
    boxed,
    deepscaler,
    exact,
    math,
    number,
)
from verst.runtime.rewards.score import RewardFunction

FUNCTIONS = "tests.runtime.hooks.functions"


def score(name: str, *labels: Any, response: str = "abc", **policy: Any) -> list[Any]:
    """Scores `response` with each label, all at once. Returns values and errors."""

    async def all_of_them() -> list[Any]:
        path = f"{FUNCTIONS}:{name}" if name.isidentifier() else name
        async with RewardFunction(path, **{"timeout_s": 30, "processes": 1} | policy) as reward:
            calls = [
                reward.score(Answer(text=response, label=label), place=f"sample {i} of group 41")
                for i, label in enumerate(labels)
            ]
            found = await asyncio.gather(*calls, return_exceptions=True)
            return [answer.value if isinstance(answer, Score) else answer for answer in found]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("response", "label", "reward"),
    [
        ("12", "12", 1), ("The answer is 12.", 12, 1), ("12 and 13", "12", 0), ("-3", "-3", 1), ("1,200", "1200", 1),
        ("3.50", "3.5", 1), ("twelve", "12", 0), ("", "1", 0), ("2+10=12", "12", 1), (".5", "0.5", 1),
    ],
)  # fmt: skip
def test_number_compares_the_last_number(response: str, label: Any, reward: float) -> None:
    assert number(Answer(text=response, label=label)) == reward


def test_math_compares_values_not_texts() -> None:
    assert math(Answer(text=r"So we get $\boxed{\frac{1}{2}}$", label="0.5")) == 1
    assert math(Answer(text="The result is 7", label="8")) == 0
    assert math(Answer(text="The result is 7", label=7)) == 1
    assert math(Answer(text="nothing", label="8")) == 0
    assert exact(Answer(text="abc ", label="abc")) == 1
    assert exact(Answer(text="abcd", label="abc")) == 0


@pytest.mark.parametrize(
    "label", ["3/4", "$18", "50%", "18 apples", "#### 18", ["18"], None, "", "nan", "inf", True]
)
def test_number_refuses_a_label_that_is_no_number(label: Any) -> None:
    with pytest.raises(LabelError, match=re.escape(f"the label {label!r} is not a number such as 18")):
        number(Answer(text="18", label=label))


@pytest.mark.parametrize("label", [None, ["18"], {"answer": "18"}])
def test_exact_refuses_a_label_that_no_answer_equals(label: Any) -> None:
    """It compared Python's spelling, and every answer was wrong."""
    with pytest.raises(LabelError, match=re.escape(f"the label {label!r} is neither a text nor a number")):
        exact(Answer(text="18", label=label))


def test_number_takes_labels_as_data_files_have_them() -> None:
    for label in ("1,200", 1200, 1200.0, " 1200 ", "1.2e3"):
        assert number(Answer(text="It is 1200.", label=label)) == 1


@pytest.mark.parametrize("label", [["1"], None, "", "   ", {"a": 1}])
def test_math_refuses_a_label_without_a_value(label: Any) -> None:
    with pytest.raises(LabelError, match="the label"):
        math(Answer(text="18", label=label))


HOSTILE = [
    r"\boxed{9^{9^{9}}}",
    r"\boxed{2^{10000000000}}",
    r"\boxed{1000000!}",
    r"\boxed{(1+x)^{100000}}",
    r"\boxed{" + "(" * 2000 + "1" + ")" * 2000 + "}",
]


@pytest.mark.parametrize(
    "hostile", [HOSTILE[:1], pytest.param(HOSTILE, marks=pytest.mark.long)], ids=["one", "all"]
)
def test_math_scores_hostile_answers_zero_within_seconds_while_the_worker_goes_on(hostile: list[str]) -> None:
    async def run() -> tuple[list[Any], float]:
        async with RewardFunction("verst.runtime.rewards:math", processes=2) as reward:
            answers = [*hostile, r"\boxed{7}", "The answer is 7."]
            calls = [
                reward.score(Answer(text=text, label="7"), place=f"answer {i}")
                for i, text in enumerate(answers)
            ]
            scores = asyncio.gather(*calls, return_exceptions=True)
            last, longest = time.monotonic(), 0.0
            while not scores.done():
                await asyncio.sleep(0.02)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            return await scores, longest

    began = time.monotonic()
    scores, longest = asyncio.run(run())
    assert [score.value for score in scores] == [0.0] * len(hostile) + [1.0, 1.0]
    assert longest < 5, "the event loop goes on (this machine may be busy)"
    assert time.monotonic() - began < 60 * len(hostile)


def test_a_failure_ends_the_run_unless_the_recipe_gives_it_a_score() -> None:
    for policy in ({}, {"failure": "fail"}):
        (error,) = score("by_label", "raise", **policy)
        assert isinstance(error, HookError)
        said = f"reward function '{FUNCTIONS}:by_label', sample 0 of group 41: raised KeyError: 'oracle' ("
        assert str(error).startswith(said)
    assert score("by_label", "raise", "leave", "none", "half", failure=-1.0) == [-1.0, -1.0, -1.0, 0.5]
    assert score("by_label", "hang", failure=0.25, timeout_s=1) == [0.25]


def test_failures_of_evaluations_are_not_those_of_a_training_step() -> None:
    async def of_both() -> list[int]:
        counted = []
        async with RewardFunction(f"{FUNCTIONS}:by_label", processes=1, failure=0.0) as reward:
            for evaluation in (True, False):
                score = await reward.score(
                    Answer(text="abc", label="raise", evaluation=evaluation), place="here"
                )
                assert score == Score(0.0)
                counted.append(reward.take_failures())
        return counted

    assert asyncio.run(of_both()) == [0, 1]


def test_there_are_no_more_processes_than_a_cpu_quota_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr("verst.runtime.rewards.score.usable_cores", lambda: 3)
    assert RewardFunction(f"{FUNCTIONS}:by_label")._pools[0]._processes == 3


def test_a_label_that_cannot_be_used_is_never_scored() -> None:
    (error,) = score("by_label", "label", failure=0.0, retries=3)
    assert isinstance(error, HookError)
    assert error.kind == "label"


def test_failures_are_tried_again_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    assert score("first_time_only", str(tmp_path / "mark"), retries=1) == [1.0]
    (error,) = score("first_time_only", str(tmp_path / "other"), retries=0)
    assert "raised ConnectionError: the judge is not there" in str(error)
    (error,) = score("by_label", "raise", retries=2)
    assert isinstance(error, HookError)


def test_numbers_of_all_kinds_are_rewards() -> None:
    assert score("by_label", True, 3, 0.5, "bool", "float32") == [1.0, 3.0, 0.5, 1.0, 0.25]
    for error in score("by_label", "text", "nan", "huge", None):
        assert isinstance(error, HookError)
    assert score("by_label", -1e30, 1e31, failure=0.0) == [-1e30, 0.0]
    (error,) = score("by_label", 1e31)
    assert "returned 1e+31; a reward is at most 1e+30 in size" in str(error)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no-colon", "write it as package.module:name"),
        ("verst.nowhere:f", "there is no module 'verst.nowhere'"),
        ("verst.runtime.rewards:nummer", "has no 'nummer'; did you mean number?"),
        (f"{FUNCTIONS}:_ACTIONS", "it is a dict, not a function"),
    ],
)
def test_a_wrong_path_is_explained(path: str, message: str) -> None:
    with pytest.raises(HookError) as caught:
        score(path)
    assert str(caught.value).startswith(f"reward function '{path}': ")
    assert message in str(caught.value)


def test_a_missing_import_inside_a_module_keeps_its_own_error(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "user_module.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load("user_module:f", "reward function")


def test_a_failure_may_drop_its_group_and_counts_zero_in_an_evaluation() -> None:
    (error,) = score("by_label", "raise", failure="drop")
    assert isinstance(error, RewardFailedError)
    assert "sample 0 of group 41: raised KeyError: 'oracle'" in str(error)

    async def in_an_evaluation() -> Score:
        async with RewardFunction(f"{FUNCTIONS}:by_label", processes=1, failure="drop") as reward:
            return await reward.score(Answer(text="abc", label="raise", evaluation=True), place="here")

    assert asyncio.run(in_an_evaluation()) == Score(0.0)


def test_a_score_brings_its_parts() -> None:
    async def both() -> list[Any]:
        async with RewardFunction(f"{FUNCTIONS}:by_label", processes=1) as reward:
            calls = [
                reward.score(Answer(text="abc", label=label), place="here")
                for label in ("parts", "wrong part", "wrong name", "no parts")
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

    scored, wrong_part, wrong_name, no_parts = asyncio.run(both())
    assert scored == Score(0.75, {"right": 1.0, "brief": -0.25})
    assert str(wrong_part).endswith("returned nan, not a finite number, as the part 'right' of the score")
    assert "returned a part of the name 'a b'; letters, digits, and" in str(wrong_name)
    assert str(no_parts).endswith("returned a Score with None as parts, not a dict of numbers")


@pytest.mark.parametrize(
    ("text", "by_boxed", "by_deepscaler"),
    [
        (r"<think>so</think> \boxed{\frac{1}{2}}", 1, 1), (r"<think>\boxed{0.5}</think> It is 0.5", 1, 0),
        (r"\boxed{0.5}", 1, 0), ("It is 0.5", 0, 0), (r"<think>\boxed{0.5}", 1, 0), (r"</think>\boxed{0.5", 0, 0),
        (r"</think>\boxed{1} or \boxed{1/2}", 1, 1), (r"</think>\boxed{1/2} or \boxed{1}", 0, 0), ("", 0, 0),
    ],
)  # fmt: skip
def test_boxed_and_deepscaler_ask_for_a_form(text: str, by_boxed: float, by_deepscaler: float) -> None:
    assert boxed(Answer(text=text, label="0.5")) == by_boxed
    assert deepscaler(Answer(text=text, label="0.5")) == by_deepscaler


@pytest.mark.parametrize("reward", [math, boxed, deepscaler])
def test_a_label_without_a_value_is_told_with_any_answer(reward: Any) -> None:
    for text in ("no box", r"</think>\boxed{1}"):
        with pytest.raises(LabelError, match="label"):
            reward(Answer(text=text, label=""))
