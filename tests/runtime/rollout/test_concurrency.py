"""A group of any size is generated a few samples at a time, and the generate function knows the trainer's limit."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from verst.runtime.hooks.score import Score
from verst.runtime.messages.jobs import Prompt, PromptJob
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.episodes import Episodes
from verst.runtime.rollout.generate import GenerateCall, Response


class Decoder:
    """The part of a tokenizer that an episode needs."""

    def decode(self, ids: Any, **how: bool) -> str:
        return "answer"


class Busy:
    """Stands for a generate function: notes how many of its calls run at a time, and the limit that each sees."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.limits: set[int | None] = set()

    async def __call__(self, place: str, call: GenerateCall, check: Any) -> list[Response]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.limits.add(call.longest_sample)
        await asyncio.sleep(0.001)
        self.running -= 1
        response = Response(
            ids=np.ones(2, np.int32),
            logprobs=np.zeros(2, np.float32),
            loss_mask=np.ones(2, np.uint8),
            weight_versions=np.zeros(2, np.int32),
            finish="stop",
            routing=None,
            signals={"temperature": np.ones(2, np.float32)},
        )
        return check(response)  # type: ignore[no-any-return]


class Engine:
    version = 0


class One:
    async def score(self, *answer: Any, **where: Any) -> Score:
        return Score(1.0)


def answer(concurrency: int, samples: int, max_tokens: int | None = None) -> tuple[Busy, int]:
    busy, sampling = Busy(), SamplingConfig()
    episodes = Episodes(Decoder(), busy, One(), None, sampling, {}, concurrency)  # type: ignore[arg-type]
    job = PromptJob(
        id=7,
        prompt=Prompt(ids=[1, 2], text="", label="", metadata={}),
        samples=samples,
        evaluation=False,
        seeds=list(range(samples)),
        max_tokens=max_tokens,
    )
    group, _ = asyncio.run(asyncio.wait_for(episodes.group(Engine(), job), 10))  # type: ignore[arg-type]
    return busy, len(group.samples)


@pytest.mark.parametrize(("concurrency", "samples", "most"), [(4, 11, 4), (1, 3, 1), (64, 3, 3)])
def test_a_group_larger_than_the_concurrency_is_generated_in_turns(concurrency, samples, most):
    busy, made = answer(concurrency, samples)
    assert (busy.most, made) == (most, samples)


def test_the_limit_of_a_job_holds_for_its_samples_alone():
    assert answer(4, 3, max_tokens=9)[0].limits == {9}
    assert answer(4, 3)[0].limits == {None}
