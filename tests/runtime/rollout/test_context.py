"""SGLang itself takes what `verst plan` lets through, and refuses or cuts a token more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.runtime.rollout.test_episodes import EPISODES, JOB
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.context import longest_prompt, longest_sample
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.generate import Conversation

CONTEXT = 512  # of the tiny models
EPISODES_OF_512 = replace(EPISODES, context=CONTEXT)


def test_the_engine_takes_the_longest_prompt_and_no_more(
    engine_of: Callable[[str], Engine], run: Any
) -> None:
    engine, one = engine_of("qwen3_moe"), SamplingConfig(max_new_tokens=1)
    longest = [5] * longest_prompt(CONTEXT, 1)
    assert len(run(engine.generate(longest, one, 1)).ids) == 1
    with pytest.raises(EngineError, match="exceeds the maximum allowed length"):
        run(engine.generate([*longest, 5], one, 1))
    room = longest_sample(CONTEXT) - len(longest)
    answers = [
        run(engine.generate(longest, SamplingConfig(max_new_tokens=room + 1), seed)) for seed in range(4)
    ]
    assert max(len(answer.ids) for answer in answers) == room, "cut without a word"


def test_a_long_conversation_ends_where_the_engine_would_refuse_it(
    engine_of: Callable[[str], Engine], run: Any
) -> None:
    """For each length up to the context's end: an engine that gets more raises, and its group would fail for good."""
    engine = engine_of("qwen3_moe")
    sampling = SamplingConfig(max_new_tokens=9)

    async def converse(tool: int) -> tuple[int, list[int]]:
        prompt = msgspec.structs.replace(JOB.prompt, ids=[5] * 40)
        job = msgspec.structs.replace(JOB, prompt=prompt)
        conversation = Conversation(replace(EPISODES_OF_512, sampling=sampling).call(engine, job, 0))
        await conversation.generate()
        conversation.add([5] * tool)
        last = await conversation.generate()
        return len(conversation.ids), [len(last.ids)]

    for before_last_turn in range(CONTEXT - 14, CONTEXT + 3):
        length, (new,) = run(converse(before_last_turn - 49))
        most = min(9, longest_sample(CONTEXT) - before_last_turn)
        fits = before_last_turn <= longest_prompt(CONTEXT, 0)
        assert (1 <= new <= most) if fits else new == 0, before_last_turn
        assert length == before_last_turn + new


def test_the_models_own_advice_on_sampling_is_not_taken(engine_of: Callable[[str], Engine], run: Any) -> None:
    """Its generation_config.json says top_k 1: all seeds would give the same."""
    engine, sampling = engine_of("qwen3_moe"), SamplingConfig(max_new_tokens=6)
    answers = {tuple(run(engine.generate([5, 9, 17], sampling, seed)).ids.tolist()) for seed in range(6)}
    assert len(answers) > 1
