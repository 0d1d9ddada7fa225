"""The bundled `math` reward under a thousand hostile answers, while a real engine generates."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.score import RewardFunction
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.engine import Engine

_ANSWERS = 1000
_RIGHT_EVERY = 25
_ENDLESS_EVERY = 50
# What eats time or memory until its limit ends it. Each costs seconds, so it is one of many.
_ENDLESS = [
    lambda r: rf"\boxed{{{r.randint(2, 9)}^{{{r.randint(7, 9)}^{{{r.randint(8, 9)}}}}}}}",
    lambda r: rf"\boxed{{{r.randint(2, 9)}^{{{r.randint(10**9, 10**12)}}}}}",
    lambda r: rf"\boxed{{{r.randint(10**6, 10**8)}!}}",
    lambda r: rf"\boxed{{(1+x)^{{{r.randint(1000, 9000)}}}}}",
    lambda r: r"\boxed{" + "(" * r.randint(50, 3000) + "1" + ")" * r.randint(50, 3000) + "}",
    lambda r: r"\boxed{\int_0^{\infty} " + "e^{" * r.randint(1, 60) + "x" + "}" * r.randint(1, 60) + "}",
]
_HOSTILE = [
    lambda r: r"\boxed{" * r.randint(2, 500) + "8",
    lambda r: r"\frac{1}{" * r.randint(2, 300) + "8" + "}" * r.randint(0, 300),
    lambda r: r"\sqrt{" * r.randint(2, 200) + "8" + "}" * r.randint(0, 200),
    lambda r: "9" * r.randint(300, 20_000),
    lambda r: rf"\boxed{{0.{'3' * r.randint(300, 5000)}}}",
    lambda r: rf"\boxed{{\frac{{{r.randint(0, 9)}}}{{0}}}}",
    lambda r: r"\boxed{\infty - \infty}",
    lambda r: r"\boxed{\text{" + "import os; os._exit(1)" * r.randint(1, 20) + "}}",
    lambda r: r"\boxed{__import__('os').system('kill -9 $PPID')}",
    lambda r: r"\boxed{\begin{pmatrix}" + r"1 & 2 \\" * r.randint(1, 200) + r"\end{pmatrix}}",
    lambda r: r"\boxed{\{" + ",".join(map(str, range(10, r.randint(20, 400)))) + r"\}}",
    lambda r: r"\boxed{" + "+".join(["x^2"] * r.randint(2, 200)) + "}",
    lambda r: "".join(chr(r.choice([0, 7, 0x202E, 0x1F600, 0x301, 0x661])) for _ in range(r.randint(1, 400))),
    lambda r: "".join(r.choice("\\{}[]()^_$%&#~|<>=") for _ in range(r.randint(1, 2000))),
    lambda r: r"$" * r.randint(1, 3000),
    lambda r: "",
]  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_thousand_hostile_answers_are_scored_zero_while_the_engine_generates(
    engine_of: Callable[[str], Engine], run: Any
) -> None:
    random_ = random.Random(17)
    endless = range(0, _ANSWERS, _ENDLESS_EVERY)
    kinds = [random_.choice(_ENDLESS if n in endless else _HOSTILE) for n in range(_ANSWERS)]
    answers = [kind(random_) for kind in kinds]
    right = range(7, _ANSWERS, _RIGHT_EVERY)
    for n in right:
        answers[n] = r"so it is \boxed{7}."
    engine = engine_of("qwen3_moe")

    async def judge() -> tuple[list[Any], list[float]]:
        scored = asyncio.Event()
        generating = asyncio.create_task(_generate_until(scored, engine))
        async with RewardFunction("verst.runtime.rewards:math", processes=2) as reward:
            calls = [
                reward.score(Answer(text=text, label="7"), place=f"answer {n}")
                for n, text in enumerate(answers)
            ]
            scores = await asyncio.gather(*calls, return_exceptions=True)
        scored.set()
        return scores, await generating

    scores, ends = run(judge(), within_s=1700)
    assert {n: (answers[n][:80], s) for n, s in enumerate(scores) if s != Score(float(n in right))} == {}
    assert len(ends) > 20
    assert max(b - a for a, b in pairwise(ends)) < 30, "generation goes on"


async def _generate_until(scored: asyncio.Event, engine: Engine) -> list[float]:
    """When each of the requests ended that were sent, one after another, meanwhile."""
    ends = [time.monotonic()]
    sampling = SamplingConfig(max_new_tokens=16)
    while not scored.is_set():
        await engine.generate([5, 9, 17, 30, 8], sampling, len(ends))
        ends.append(time.monotonic())
    return ends
