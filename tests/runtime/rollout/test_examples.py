"""The examples of generate functions do what the page on episodes says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec

from tests.runtime.rollout.test_episodes import EPISODES, JOB, AtVersion2, Half, Words
from verst.runtime.hooks.hook import Hook
from verst.runtime.messages.sample import Sample


class Chats(Words):
    """A tokenizer with a chat template: a prompt of three tokens."""

    rendered: Any = None

    def encode(self, text: str, **how: bool) -> list[int]:
        return [6]

    def apply_chat_template(self, messages: list[dict[str, Any]], **how: bool) -> list[int]:
        self.rendered = messages
        return [7, 7, 7]


def samples(example: str, tokenizer: Chats, label: str = "2", turns: int = 5, **options: Any) -> list[Sample]:
    prompt = msgspec.structs.replace(JOB.prompt, label=label, messages=[{"role": "user", "content": "?"}])
    episodes = replace(
        EPISODES, generate=Hook("generate function", f"examples.{example}"), tokenizer=tokenizer, **options
    )
    job = msgspec.structs.replace(JOB, prompt=prompt)
    group, _ = asyncio.run(episodes.group(AtVersion2(*["stop"] * turns), job))  # type: ignore[arg-type]
    return group.samples


def test_a_draft_and_a_better_answer_are_two_samples_with_one_reward() -> None:
    half, tokenizer = Half(), Chats()
    draft, final = samples("two_samples:twice", tokenizer, reward=half)
    assert (draft.prompt_ids.tolist(), final.prompt_ids.tolist()) == ([1, 2], [7, 7, 7])
    assert (draft.reward, final.reward, draft.episode, final.episode) == (0.5, 0.5, 0, 0)
    assert len(half.answers) == 1
    assert "A draft: 3 4 5" in tokenizer.rendered[-1]["content"]


def test_a_game_gives_its_own_score() -> None:
    (won,) = samples("guessing:guess", Chats(), label="3 4 5", reward=None)
    assert (won.reward, won.response_ids.tolist()) == (1.0, [3, 4, 5])
    (lost,) = samples("guessing:guess", Chats(), label="8", reward=None)
    assert (lost.reward, len(lost.response_ids)) == (0.0, 5 * 3 + 4)
