"""SGLang itself takes what `verst plan` lets through, and refuses or cuts a token more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.context import longest_prompt, longest_sample
from verst.runtime.rollout.engine.engine import Engine

CONTEXT = 512  # of the tiny models


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


def test_the_models_own_advice_on_sampling_is_not_taken(engine_of: Callable[[str], Engine], run: Any) -> None:
    """Its generation_config.json says top_k 1: all seeds would give the same."""
    engine, sampling = engine_of("qwen3_moe"), SamplingConfig(max_new_tokens=6)
    answers = {tuple(run(engine.generate([5, 9, 17], sampling, seed)).ids.tolist()) for seed in range(6)}
    assert len(answers) > 1
