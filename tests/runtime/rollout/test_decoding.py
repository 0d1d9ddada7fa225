"""A reward sees the text that the model wrote: no special tokens, every space."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from verst.runtime.data.models import character_tokenizer
from verst.runtime.hooks.score import Score
from verst.runtime.messages.jobs import Prompt, PromptJob
from verst.runtime.rewards import Answer, exact
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.episodes import Episodes
from verst.runtime.rollout.generate import Response

WRITTEN = "a , b ."


class Engine:
    version = 0


class Exact:
    """Stands for the processes that call the reward."""

    async def score(self, answer: Answer, **where: str) -> Score:
        return Score(exact(answer))


def test_the_text_is_not_cleaned_up() -> None:
    tokenizer = character_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True  # as Llama 3's tokenizer has it

    async def generate(*call: Any, check: Any) -> list[Response]:
        ids = np.array(tokenizer(WRITTEN + "<|end|>")["input_ids"], dtype=np.int32)
        shown = {
            "ids": ids,
            "logprobs": np.zeros(len(ids), np.float32),
            "loss_mask": np.ones(len(ids), np.uint8),
            "signals": {"temperature": np.ones(len(ids), np.float32)},
        }
        versions = np.zeros(len(ids), np.int32)
        return check(Response(**shown, weight_versions=versions, finish="stop", routing=None))

    sampling = SamplingConfig()
    episodes = Episodes(tokenizer, generate, Exact(), None, sampling, {}, 1)  # type: ignore[arg-type]
    prompt = Prompt(ids=[5], text="", label=WRITTEN, metadata={})
    job = PromptJob(id=1, prompt=prompt, samples=1, evaluation=False, seeds=[1])
    group, _ = asyncio.run(episodes.group(Engine(), job))  # type: ignore[arg-type]
    assert group.samples[0].reward == 1.0
    assert group.samples[0].metadata["text"] == WRITTEN
