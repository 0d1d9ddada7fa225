"""Built-in rewards score what they say; a user's function that misbehaves is named with its sample."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from verst.runtime.hooks.dotted import DottedPathError, load
from verst.runtime.rewards import RewardError, RewardFunction, exact, math, number

HERE = "tests.runtime.rewards.test_rewards"


async def asynchronous(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return len(response) / label + metadata["more"]


def raising(response: str, label: Any, metadata: dict[str, Any]) -> float:
    raise KeyError("oracle")


def not_a_number(response: str, label: Any, metadata: dict[str, Any]) -> float:
    return float("nan")


def text(response: str, label: Any, metadata: dict[str, Any]) -> Any:
    return "0.5"


def slow(response: str, label: Any, metadata: dict[str, Any]) -> float:
    time.sleep(0.5)
    return 1.0


NOT_CALLABLE = 3


def score(name: str, response: str = "abc", label: Any = 2, timeout_s: float = 5, **metadata: Any) -> float:
    reward = RewardFunction(f"{HERE}:{name}" if ":" not in name else name, timeout_s)
    return asyncio.run(reward.score(response, label, metadata, group=41, index=3))


@pytest.mark.parametrize(
    ("response", "label", "reward"),
    [
        ("12", "12", 1), ("The answer is 12.", 12, 1), ("12 and 13", "12", 0), ("-3", "-3", 1), ("1,200", "1200", 1),
        ("3.50", "3.5", 1), ("twelve", "12", 0), ("", "1", 0), ("2+10=12", "12", 1), (".5", "0.5", 1),
    ],
)  # fmt: skip
def test_number_compares_the_last_number(response: str, label: Any, reward: float) -> None:
    assert number(response, label, {}) == reward


def test_math_compares_values_not_texts() -> None:
    assert math(r"So we get $\boxed{\frac{1}{2}}$", "0.5", {}) == 1
    assert math("The result is 7", "8", {}) == 0
    assert exact("abc ", "abc", {}) == 1
    assert exact("abcd", "abc", {}) == 0


def test_plain_and_async_functions_are_called() -> None:
    assert score("asynchronous", more=1) == 2.5
    assert score("verst.runtime.rewards:math", "It is 4", "4") == 1, (
        "in a thread, where signals cannot be used"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", "raised KeyError: 'oracle'"),
        ("not_a_number", "returned nan, not a finite number"),
        ("text", "returned '0.5', not a finite number"),
    ],
)
def test_misbehaviour_names_function_sample_and_value(name: str, message: str) -> None:
    with pytest.raises(RewardError) as caught:
        score(name)
    assert str(caught.value).startswith(f"reward function '{HERE}:{name}', sample 3 of group 41: {message}")


def test_a_reward_has_a_deadline() -> None:
    with pytest.raises(RewardError, match="no value after 0 s"):
        score("slow", timeout_s=0.1)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no-colon", "write it as package.module:name"),
        ("verst.nowhere:f", "there is no module 'verst.nowhere'"),
        ("verst.runtime.rewards:nummer", "has no 'nummer'; did you mean number?"),
        (f"{HERE}:NOT_CALLABLE", "it is a int, not a function"),
    ],
)
def test_a_wrong_path_is_explained(path: str, message: str) -> None:
    with pytest.raises(DottedPathError) as caught:
        RewardFunction(path)
    assert str(caught.value).startswith(f"reward function '{path}': ")
    assert message in str(caught.value)


def test_a_missing_import_inside_a_module_keeps_its_own_error(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "user_module.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load("user_module:f", "reward function")
