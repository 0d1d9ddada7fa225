"""Rewards that look at an answer's length. DAPO's punishment of overlong answers is in `dapo.py`."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from math import cos, inf, pi
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.dotted import load_function
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.limits import limited, limits_of
from verst.runtime.hooks.preparation import prepared_by
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.arguments import typed


def _check(*, limit: int, reward: str, **bounds: Any) -> None:
    if limit < 1:
        raise ValueError(f"limit must be 1 or more; it is {limit}")
    try:
        function = _function(reward)
    except HookError as error:
        raise ValueError(str(error)) from None
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"reward {reward!r} is async; it must be a plain function")


def _math_beforehand(*, limit: int, reward: str = "verst.runtime.rewards:math", **bounds: Any) -> None:
    for package in limits_of(_function(reward)).imports:
        importlib.import_module(package)


@limited(cpu_s=5.0, lost=-10.0)
@prepared_by(_math_beforehand)
@typed(_check)
def cosine(
    answer: Answer,
    *,
    limit: int,
    reward: str = "verst.runtime.rewards:math",
    right: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceeded: float = -10.0,
) -> float:
    """The cosine length reward of arXiv:2502.03373: brief is better if right, and worse if wrong.

    The value of a right answer goes from `right[0]` without tokens to `right[1]` at `limit` tokens, along half a
    cosine; that of a wrong one from `wrong[0]` to `wrong[1]`. The defaults are the paper's. An answer on which the
    reward takes more than 5 s of CPU time is -10.

    Args:
        answer: the answer.
        limit: most tokens of an answer.
        reward: the dotted path of a plain reward; the answer is right if it is above 0.
        right: values of a right answer of no tokens, and of `limit` tokens.
        wrong: the same for a wrong one.
        exceeded: the value of an answer that was cut off or has `limit` tokens or more.
    """
    length = len(answer.ids)
    if answer.finish == "length" or length >= limit:
        return exceeded
    value = _function(reward)(answer)
    first, last = right if float(getattr(value, "value", value)) > 0 else wrong
    return last + (first - last) * (1 + cos(pi * length / limit)) / 2


def _check_weight(*, weight: float) -> None:
    if not 0 < weight < inf:
        raise ValueError(f"weight must be above 0; it is {weight}")


@typed(_check_weight)
def relative_length(answers: list[Answer], *, weight: float = 1.0) -> list[Score]:
    """The length reward of Kimi k1.5 (arXiv:2501.12599, section 2.3.3), added to what `rollout.reward` gave: among the
    answers to a prompt brief ones get more, and of wrong ones long ones less.

    It goes from 0.5 for the shortest answer down to -0.5 for the longest, in proportion to the tokens; for a wrong
    answer it is 0 at most. If all are equally long it is 0. Its part of the score is `length`. For
    `rollout.group_reward`. With weight 1 and rewards of 0 and 1 a right answer still gets more than any wrong one.

    Args:
        answers: all answers to a prompt, which `rollout.reward` has scored; right are those with more than 0.
        weight: the factor of the length reward. The paper begins without it, and sets it later in training.
    """
    lengths = [len(answer.ids) for answer in answers]
    shortest, spread = min(lengths), max(lengths) - min(lengths)
    scores = []
    for answer, length in zip(answers, lengths, strict=True):
        if answer.score is None:
            raise ValueError("relative_length shapes what rollout.reward gives, and there is none: name one")
        bonus = 0.5 - (length - shortest) / spread if spread else 0.0
        bonus = bonus if answer.score.value > 0 else min(0.0, bonus)
        scores.append(Score(answer.score.value + weight * bonus, {"length": bonus}))
    return scores


@cache
def _function(path: str) -> Any:
    return load_function(path, "reward function")
