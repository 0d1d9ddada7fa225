"""Each evaluation set has its own sampling and functions; what it does not name is that of training."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from tests.runtime.rollout.test_episodes import EPISODES, JOB
from verst.runtime.data.config import EvalConfig
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.set_hooks import SetHooks, hooks_of_sets, rewards_of


def last_word(text: str) -> str | None:
    return text.split()[-1] if text.strip() else None


def length(text: str) -> int:
    return len(text)


def test_a_set_has_what_it_names_and_else_what_training_has() -> None:
    config = RolloutConfig(
        reward="verst.runtime.rewards:exact",
        sampling=SamplingConfig(max_new_tokens=7, stop=["."], temperature=0.8),
    )
    reward_of = rewards_of(config)
    training = SetHooks(config.sampling, EPISODES.generate, reward_of(config.reward))
    number = "verst.runtime.rewards:number"
    sets = {
        "plain": EvalConfig(path="a.jsonl"),
        "own": EvalConfig(
            path="b.jsonl", temperature=0.6, top_p=0.9, top_k=20, min_p=0.1, max_new_tokens=99, stop=[], k=[2],
            samples_per_prompt=4, reward=number, generate=f"{__name__}:last_word", extract=f"{__name__}:last_word",
        ),
        "same": EvalConfig(path="c.jsonl", reward=number),
    }  # fmt: skip
    found = hooks_of_sets(config, sets, training, reward_of)
    plain, own, same = found["plain"], found["own"], found["same"]
    assert plain.sampling == SamplingConfig(max_new_tokens=7, stop=["."], temperature=0.0)
    assert (plain.reward, plain.generate, plain.extract) == (training.reward, training.generate, None)
    assert own.sampling == SamplingConfig(
        max_new_tokens=99, stop=[], temperature=0.6, top_p=0.9, top_k=20, min_p=0.1
    )
    assert ([part.function for part in own.reward._parts], own.generate.function) == ([number], last_word)
    assert same.reward is own.reward, "one reward has its processes once"


@pytest.mark.parametrize(
    ("name", "told"), [("last_word", None), ("length", "returned int, must be a str or None")]
)
def test_the_final_answers_of_a_set_are_its_votes(name: str, told: str | None) -> None:
    extract = Hook("extract function", f"{__name__}:{name}")
    hooks = SetHooks(EPISODES.sampling, EPISODES.generate, EPISODES.reward, extract)
    episodes = replace(EPISODES, sets={"math": hooks, "code": replace(hooks, extract=None)})
    job = msgspec.structs.replace(JOB, evaluation=True, set="math")
    if told is not None:
        with pytest.raises(HookError, match=rf"answer 0 to evaluation prompt 7 \(math\): {told}"):
            asyncio.run(episodes.votes(job, ["so 3"]))
        return
    assert asyncio.run(episodes.votes(job, ["so 3", " ", "it is 4"])) == ["3", None, "4"]
    assert asyncio.run(episodes.votes(msgspec.structs.replace(job, set="code"), ["so 3"])) == []
