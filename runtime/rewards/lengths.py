"""Rewards that look at an answer's length. DAPO's punishment of overlong answers is in `dapo.py`."""

from __future__ import annotations

from functools import cache
from math import cos, pi
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.dotted import load_function


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
    cosine; that of a wrong one from `wrong[0]` to `wrong[1]`. The defaults are the paper's.

    Args:
        answer: the answer.
        limit: most tokens of an answer.
        reward: the dotted path of a plain reward; the answer is right if it is above 0.
        right: values of a right answer of no tokens, and of `limit` tokens.
        wrong: the same for a wrong one.
        exceeded: the value of an answer that was cut off or has `limit` tokens or more.
    """
    if limit < 1:
        raise ValueError(f"limit must be 1 or more; it is {limit}")
    length = len(answer.ids)
    if answer.finish == "length" or length >= limit:
        return exceeded
    value = _function(reward)(answer)
    first, last = right if float(getattr(value, "value", value)) > 0 else wrong
    return last + (first - last) * (1 + cos(pi * length / limit)) / 2


@cache
def _function(path: str) -> Any:
    return load_function(path, "reward function")
