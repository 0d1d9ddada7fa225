"""Generate functions: one turn, and several with text of others between, become samples that hold together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from verst.runtime.messages.jobs import Prompt
from verst.runtime.messages.sample import Group
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.filters import nonzero_std
from verst.runtime.rollout.generate import Conversation, GenerateCall, Response, single_turn

PROMPT = Prompt(ids=[5, 9, 17, 30, 8], text="", label="1", metadata={"row": 3})
SHORT = SamplingConfig(max_new_tokens=6)


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("qwen3_moe")


def call_of(engine: Engine, seed: int = 3, **limits: int) -> GenerateCall:
    return GenerateCall(engine=engine, prompt=PROMPT, sampling=SHORT, seed=seed, tokenizer=None, **limits)


def sample(response: Response, reward: float = 0.0, index: int = 0) -> Any:
    return response.sample(PROMPT.ids, group=7, index=index, reward=reward, metadata=PROMPT.metadata)


def test_a_single_turn_becomes_a_sample(engine: Engine, run: Any) -> None:
    made = sample(run(single_turn(call_of(engine))), reward=1.0)
    direct = run(engine.generate(PROMPT.ids, SHORT, 3))
    np.testing.assert_array_equal(made.response_ids, direct.ids)
    np.testing.assert_array_equal(made.routing, direct.routing)
    assert (made.loss_mask == 1).all()
    assert (made.group, made.index, made.reward, made.metadata) == (7, 0, 1.0, {"row": 3})
    assert (made.signals["temperature"] == 1).all()


def test_turns_and_tool_text_are_one_sequence(engine: Engine, run: Any) -> None:
    tool = [40, 41, 42]
    colder = SHORT.model_copy(update={"temperature": 0.7})

    async def converse() -> Conversation:
        conversation = Conversation(call_of(engine))
        await conversation.generate()
        conversation.add(tool[:1])
        conversation.add(tool[1:])
        await conversation.generate(colder)
        conversation.add([50, 50])  # nothing follows: not part of the response
        return conversation

    conversation = run(converse())
    response = conversation.response()
    first, second = conversation._turns
    expected = [*first.ids, *tool, *second.ids]
    assert response.ids.tolist() == expected
    mask = [1] * len(first.ids) + [0] * 3 + [1] * len(second.ids)
    assert response.loss_mask.tolist() == mask
    assert (response.logprobs[response.loss_mask == 0] == 0).all()
    np.testing.assert_array_equal(response.logprobs[-len(second.ids) :], second.logprobs)
    np.testing.assert_array_equal(response.routing[: len(first.routing)], first.routing)
    np.testing.assert_array_equal(
        response.routing[len(first.routing) :], second.routing[len(first.routing) :]
    )
    made = sample(response)
    assert made.length == len(PROMPT.ids) + len(expected)
    temperature = np.float32([1] * len(first.ids) + [0] * 3 + [0.7] * len(second.ids))
    np.testing.assert_array_equal(made.signals["temperature"], temperature)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"top_p": 0.9}, r"sample 0 of group 7: its turn 2 was sampled with top_p 0\.9, but .* wrong ones"),
        ({"top_k": 5, "min_p": 0.1}, "turn 2 was sampled with top_k 5 and min_p 0.1"),
        ({"temperature": 0}, "greedy tokens have no policy gradient"),
    ],
)
def test_a_turn_whose_policy_the_trainer_does_not_know_is_for_evaluations_alone(
    given: dict[str, float], fault: str, engine: Engine, run: Any
) -> None:
    async def converse() -> Response:
        conversation = Conversation(call_of(engine))
        await conversation.generate()
        await conversation.generate(SHORT.model_copy(update=given))
        return conversation.response()

    response = run(converse())
    with pytest.raises(ValueError, match=fault):
        sample(response)
    response.sample(PROMPT.ids, group=7, index=0, reward=0.0, metadata={}, trained=False)


@pytest.mark.parametrize("longest", [12, 14, 15, 20, 100])
def test_a_conversation_never_grows_beyond_what_the_trainer_takes(
    engine: Engine, run: Any, longest: int
) -> None:
    """Prompt 5, turns of 6, and 3 tokens between them: the second turn ends at 20."""

    async def converse() -> tuple[Conversation, list[Any]]:
        conversation = Conversation(call_of(engine, longest_sample=longest))
        turns = [await conversation.generate()]
        for _ in range(2):
            conversation.add([40, 41, 42])
            turns.append(await conversation.generate())
        return conversation, turns

    conversation, turns = run(converse())
    made = sample(conversation.response())
    free = [6, 6, 6] if longest == 100 else [6, max(0, min(6, longest - 14)), 0]
    assert [len(turn.ids) for turn in turns] == free
    assert made.length == 5 + 6 + (3 + free[1] if free[1] else 0) + (3 + free[2] if free[2] else 0)
    assert made.length <= longest
    assert made.finish == turns[-1].finish == "length"
    assert made.loss_mask.sum() == sum(free)


def test_a_prompt_that_leaves_no_room_is_named(engine: Engine, run: Any) -> None:
    async def converse() -> Response:
        conversation = Conversation(call_of(engine, longest_sample=5))
        assert (await conversation.generate()).finish == "length"
        return conversation.response()

    with pytest.raises(ValueError, match="the prompt of 5 tokens leaves no room"):
        run(converse())


def test_a_response_without_tokens_is_no_sample(engine: Engine) -> None:
    conversation = Conversation(call_of(engine))
    with pytest.raises(ValueError, match="without a turn"):
        conversation.response()


def test_nonzero_std_drops_groups_without_a_signal(engine: Engine, run: Any) -> None:
    async def generate() -> list[Response]:
        return await asyncio.gather(*(single_turn(call_of(engine, seed=seed)) for seed in range(2)))

    responses = run(generate())

    def group(*rewards: float) -> Group:
        rewarded = zip(responses, rewards, strict=True)
        return Group(id=7, samples=[sample(r, reward, i) for i, (r, reward) in enumerate(rewarded)])

    assert nonzero_std(group(0.0, 1.0))
    assert not nonzero_std(group(1.0, 1.0))
