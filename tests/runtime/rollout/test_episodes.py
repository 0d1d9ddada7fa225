"""A user's generate function, reward and filter: what they return is checked before it is trained on."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.runtime.sample_factory import make_group
from verst.runtime.data.config import EvalConfig, SourceConfig
from verst.runtime.data.models import character_tokenizer
from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.score import Score
from verst.runtime.messages.jobs import Prompt, PromptJob
from verst.runtime.messages.sample import Group
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Generation
from verst.runtime.rollout.episodes import Episodes, answer_of, own_sampling
from verst.runtime.rollout.generate import Conversation, GenerateCall, Response
from verst.runtime.rollout.set_hooks import SetHooks, hooks_of_sets
from verst.runtime.run.folder import RunFolder

JOB = PromptJob(
    id=7, prompt=Prompt(text="?", ids=[1, 2], label="2", metadata={}), samples=1, evaluation=False, seeds=[0]
)
SAMPLING = SamplingConfig(max_new_tokens=4)
RESPONSE = Response(
    ids=np.array([3, 4, 5], np.int32),
    logprobs=np.array([-0.5, 0.0, -1.0], np.float32),
    loss_mask=np.array([1, 0, 1], np.uint8),
    weight_versions=np.array([2, 2, 2], np.int32),
    finish="stop",
    routing=None,
    signals={"temperature": np.array([1, 0, 1], np.float32)},
)


class AtVersion2:
    """An engine that holds version 2. Its turns end as they are told to."""

    version = 2

    def __init__(self, *finishes: Any) -> None:
        self.finishes = list(finishes)

    async def generate(self, ids: list[int], sampling: SamplingConfig, seed: int | None) -> Generation:
        return Generation(
            ids=RESPONSE.ids,
            logprobs=RESPONSE.logprobs,
            weight_versions=RESPONSE.weight_versions,
            finish=self.finishes.pop(0),
            routing=None,
            prompt_tokens=len(ids),
            cached_tokens=0,
            seconds=0.1,
        )


class Words:
    """A tokenizer."""

    def decode(self, ids: np.ndarray, **how: bool) -> str:
        return " ".join(map(str, ids))


class Half:
    """A reward function of 0.5."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    async def score(self, answer: Answer, **where: Any) -> Score:
        self.answers.append(answer)
        return Score(0.5)


class Ranked:
    """A group reward: the place of each answer, plus what its own reward gave."""

    async def score(self, answers: list[Answer], *, place: str) -> list[Score]:
        assert place in ("group 7", "evaluation prompt 7 (math)")
        return [Score(n + (a.score.value if a.score else 0.0)) for n, a in enumerate(answers)]


async def generate(call: GenerateCall) -> Any:
    return ACTION(call.engine)


ACTION: Any = None


async def two_turns(call: GenerateCall) -> Response:
    conversation = Conversation(call)
    await conversation.generate()
    conversation.add([9])
    await conversation.generate()
    return conversation.response()


def keep(group: Group) -> Any:
    return ACTION(group)


async def keep_async(group: Group) -> Any:
    return ACTION(group)


EPISODES = Episodes(
    tokenizer=Words(),
    generate=Hook("generate function", f"{__name__}:generate", passes=EngineError),
    reward=Half(),  # type: ignore[arg-type]
    keep=None,
    sampling=SAMPLING,
    sets={},
    concurrency=4,
    vocabulary=10,
)


def answer(action: Any, engine: Any = None, **options: Any) -> Any:
    """One sample made by a generate function that returns `action(engine)`."""
    sys.modules[__name__].ACTION = action  # type: ignore[attr-defined]
    episodes = replace(EPISODES, **options)
    group, _ = asyncio.run(episodes.group(engine or AtVersion2(), JOB))
    return group.samples[0]


def test_a_response_becomes_a_scored_sample() -> None:
    sample = answer(lambda engine: RESPONSE)
    assert (sample.group, sample.index, sample.reward, sample.prompt_ids.tolist()) == (7, 0, 0.5, [1, 2])
    assert sample.metadata == {"prompt": "?", "text": "3 4 5"}


def test_a_reward_gets_the_whole_answer() -> None:
    half = Half()
    asked = [{"role": "user", "content": "?"}]
    job = msgspec.structs.replace(
        JOB,
        prompt=msgspec.structs.replace(JOB.prompt, metadata={"row": 3}, messages=asked),
        evaluation=True,
    )
    sys.modules[__name__].ACTION = lambda engine: RESPONSE  # type: ignore[attr-defined]
    job = msgspec.structs.replace(job, set="math")
    sets = {"math": SetHooks(SAMPLING, EPISODES.generate, half)}  # type: ignore[arg-type]
    asyncio.run(replace(EPISODES, sets=sets).group(AtVersion2(), job))  # type: ignore[arg-type]
    expected = Answer(
        text="3 4 5",
        label="2",
        metadata={"row": 3},
        prompt="?",
        ids=[3, 4, 5],
        finish="stop",
        turns=1,
        messages=[*asked, {"role": "assistant", "content": "3 4 5"}],
        evaluation=True,
    )
    assert half.answers == [expected]
    talk = [*asked, {"role": "assistant", "content": "3"}]
    for turns, told, messages in ((2, [], []), (2, talk, talk)):
        response = msgspec.structs.replace(RESPONSE, turns=turns, messages=told, finish="length")
        sample = make_group(7).samples[0]
        sample.metadata.update(text="3", prompt="?")
        answer = answer_of(job, [response], sample)
        assert (answer.turns, answer.messages, answer.finish) == (turns, messages, "length")


def several(*scores: Any) -> list[Response]:
    """Responses of one episode, the second with a prompt of its own."""
    made = [
        msgspec.structs.replace(RESPONSE, score=score, metadata={"n": n}) for n, score in enumerate(scores)
    ]
    made[1].prompt_ids = [8, 9]
    return made


def test_responses_of_one_episode_become_samples_with_the_reward_of_the_last() -> None:
    half = Half()
    sys.modules[__name__].ACTION = lambda engine: several(None, None, None)  # type: ignore[attr-defined]
    job = msgspec.structs.replace(JOB, samples=2, seeds=[0, 1])
    group, _ = asyncio.run(replace(EPISODES, reward=half).group(AtVersion2(), job))  # type: ignore[arg-type]
    group.validate()
    assert [(s.index, s.episode, s.reward) for s in group.samples] == [
        (0, 0, 0.5), (1, 0, 0.5), (2, 0, 0.5), (3, 1, 0.5), (4, 1, 0.5), (5, 1, 0.5),
    ]  # fmt: skip
    assert [s.prompt_ids.tolist() for s in group.samples[:3]] == [[1, 2], [8, 9], [1, 2]]
    assert [s.metadata["prompt"] for s in group.samples[:3]] == ["?", "8 9", "?"]
    assert [(a.turns, a.text, a.prompt) for a in half.answers] == [(3, "3 4 5", "?")] * 2
    assert group.meta(0).episodes == [0, 0, 0, 1, 1, 1]


def test_an_episode_that_scores_itself_is_not_scored_again() -> None:
    half = Half()
    scored = Score(0.75, {"tests": 1.0})
    for scores in ((None, scored), (scored, scored)):
        sys.modules[__name__].ACTION = lambda engine, s=scores: several(*s)  # type: ignore[attr-defined]
        group, _ = asyncio.run(replace(EPISODES, reward=half).group(AtVersion2(), JOB))  # type: ignore[arg-type]
        assert [(s.reward, s.scores) for s in group.samples] == [(0.75, {"tests": 1.0})] * 2
    assert half.answers == []
    assert answer(lambda engine: several(np.float32(0.5), None), reward=None).reward == 0.5


def test_where_a_teacher_teaches_an_answer_without_a_score_has_the_reward_0_but_in_an_evaluation() -> None:
    taught = replace(EPISODES, reward=None, taught=True)
    assert answer(lambda engine: several(np.float32(0.5), None), reward=None, taught=True).reward == 0.5
    assert answer(lambda engine: RESPONSE, reward=None, taught=True).reward == 0.0
    held_out = msgspec.structs.replace(JOB, evaluation=True, set="held_out")
    sets = {"held_out": SetHooks(SAMPLING, EPISODES.generate, None)}
    with pytest.raises(HookError, match="no score, and the recipe has no"):
        asyncio.run(replace(taught, sets=sets).group(AtVersion2(), held_out))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda engine: several(1.0, 0.5), "Responses of one episode with different scores: Score(value=1.0"),
        (lambda engine: several(float("nan"), None), "returned nan, not a finite number"),
        (lambda engine: several("good", None), "returned 'good', not a finite number"),
        (lambda engine: [], "returned no Response"),
        (lambda engine: [RESPONSE, None], "returned None, not a Response"),
        (lambda engine: RESPONSE, "no score, and the recipe has no rollout.reward: set `Response.score`"),
        (
            lambda engine: msgspec.structs.replace(RESPONSE, prompt_ids=[1.0]),
            "prompt_ids is [1.0], not a list",
        ),
    ],
)
def test_scores_and_responses_of_an_episode_are_checked(made: Any, told: str) -> None:
    with pytest.raises(HookError, match=re.escape(told)):
        answer(made, reward=None)


def test_a_generate_function_knows_which_answer_it_makes_and_how_long_it_may_become() -> None:
    greedy = SetHooks(SAMPLING.model_copy(update={"temperature": 0}), EPISODES.generate, EPISODES.reward)
    episodes = replace(EPISODES, context=100, sets={"math": greedy})
    call = episodes.call(AtVersion2(), msgspec.structs.replace(JOB, samples=2, seeds=[3, 4]), 1)
    assert (call.group, call.index, call.seed, call.evaluation, call.sampling) == (7, 1, 4, False, SAMPLING)
    assert (call.longest_sample, call.longest_input) == (98, 93)
    shorter = episodes.call(
        AtVersion2(), msgspec.structs.replace(JOB, max_tokens=50, evaluation=True, set="math"), 0
    )
    assert (shorter.longest_sample, shorter.sampling.temperature, shorter.evaluation) == (50, 0, True)


def test_the_context_is_that_of_the_folder_that_the_engines_serve(folder: RunFolder, tmp_path: Path) -> None:
    for name, context in (("model", 4096), ("served", 256)):
        character_tokenizer().save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"max_position_embeddings": context}))

    def of(**rollout: Any) -> int | None:
        recipe = {
            "model": {"path": str(tmp_path / "model")},
            "data": {"train": {"path": "train.jsonl"}},
            "rollout": {"reward": "verst.runtime.rewards:exact", **rollout},
        }
        folder.recipe.write_text(json.dumps(recipe))
        return Episodes.from_recipe(folder).context

    assert of() == 4096
    assert of(model_path=str(tmp_path / "served")) == 256
    assert of(sglang={"context-length": 128}) == 128


FAULTS = {
    "nothing": (None, "returned None, not a Response"),
    "mask": ({"loss_mask": np.array([1, 2, 0], np.uint8)}, "loss_mask has 2 at token 1, neither 0 nor 1"),
    "vocabulary": (
        {"ids": np.array([3, 10, 4], np.int32)},
        "response_ids has 10 at token 1, outside the vocabulary",
    ),
    "version": (
        {"weight_versions": np.array([2, 2, 3], np.int32)},
        "weight_versions has 3 at token 2, newer than",
    ),
    "positive": ({"logprobs": np.array([0.5, 0, 0], np.float32)}, "logprobs has 0.5 at token 0, above 0"),
    "lengths": ({"logprobs": np.zeros(2, np.float32)}, "logprobs has 2 entries for 3 response tokens"),
    "ids in a list": ({"ids": [3, 4, 5]}, "returned a Response whose ids is [3, 4, 5], not a numpy array"),
    "no ids": ({"ids": None}, "returned a Response whose ids is None, not a numpy array"),
    "negative": ({"ids": np.array([3, -4, 5], np.int32)}, "response_ids has -4 at token 1"),
    "signal in a list": (
        {"signals": {"temperature": [1.0, 0.0, 1.0]}},
        "whose signals['temperature'] is [1.0, 0.0, 1.0], not a numpy array",
    ),
    "no metadata": ({"metadata": None}, "whose signals or metadata are no dict"),
    "routing in a list": ({"routing": [[1]]}, "whose routing is [[1]], not a numpy array"),
    "metadata": ({"metadata": {"tools": {1, 2} and object()}}, "cannot encode a object"),
    "a name that is no text": ({"metadata": {3: 1}}, "Expected `str`, got `int`"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_response_that_cannot_be_trained_on_is_the_functions_fault(case: str) -> None:
    change, message = FAULTS[case]
    made = None if change is None else msgspec.structs.replace(RESPONSE, **change)  # type: ignore[arg-type]
    with pytest.raises(HookError) as caught:
        answer(lambda engine: made)
    assert str(caught.value).startswith(f"generate function '{__name__}:generate', sample 0 of group 7: ")
    assert message in str(caught.value)


def test_what_the_function_raises_is_told_or_tried_again_as_the_recipe_says() -> None:
    def fail(engine: Any) -> None:
        raise KeyError("tool")

    with pytest.raises(HookError, match=r"raised KeyError: 'tool' \(.+test_episodes.py:\d+, in fail\)"):
        answer(fail)
    with pytest.raises(EngineError, match="raised KeyError: 'tool'"):
        answer(fail, generate_failure="retry")
    with pytest.raises(HookError, match=r"called sys.exit\(2\)"):
        answer(lambda engine: sys.exit(2))


def test_errors_of_the_engine_stay_the_engines() -> None:
    def refuse(engine: Any) -> None:
        raise EngineError("engine: /generate was refused")

    with pytest.raises(EngineError, match="refused"):
        answer(refuse)


@pytest.mark.parametrize("finishes", [("abort", "stop"), ("stop", "abort")])
def test_an_abort_in_any_turn_is_an_error_of_the_engine(finishes: tuple[str, str]) -> None:
    generate = Hook("generate function", f"{__name__}:two_turns", passes=EngineError)
    with pytest.raises(EngineError, match="the engine aborted sample 0 of group 7"):
        answer(None, AtVersion2(*finishes), generate=generate)
    assert answer(None, AtVersion2("length", "stop"), generate=generate).finish == "stop"


@pytest.mark.parametrize("name", ["keep", "keep_async"])
def test_a_filter_is_awaited_and_returns_true_or_false(name: str) -> None:
    episodes = replace(EPISODES, keep=Hook("group filter", f"{__name__}:{name}", timeout_s=5))

    def decide(action: Any) -> tuple[bool, str]:
        sys.modules[__name__].ACTION = action  # type: ignore[attr-defined]
        return tuple(asyncio.run(replace(episodes, vocabulary=None).keeps(make_group(7))))

    assert decide(lambda group: len(group.samples) == 4) == (True, "filter")
    assert decide(lambda group: False) == (False, "filter")
    assert decide(lambda group: (False, "too_easy")) == (False, "too_easy")
    with pytest.raises(HookError, match=r"group filter .+, group 7: returned None, neither True nor False"):
        decide(lambda group: None)
    with pytest.raises(HookError, match="raised ZeroDivisionError"):
        decide(lambda group: 1 / 0)

    def note(value: Any) -> Any:
        return lambda group: group.samples[1].metadata.update(figures={"x": value}) or True

    assert decide(note(np.float64(0.5)))[0] is True
    assert decide(note(np.float32(0.5)))[0] is True
    for value in (float("nan"), object()):
        with pytest.raises(
            HookError, match=r"group 7: left in the group what cannot be trained on: .*not a finite"
        ):
            decide(note(value))

    def tag(group: Any) -> bool:
        group.samples[1].metadata["mine"] = object()
        return True

    with pytest.raises(HookError, match="what cannot be trained on: cannot encode a object"):
        decide(tag)


class Ones(Half):
    """Another reward function."""

    async def score(self, answer: Answer, **where: Any) -> Score:
        return Score(1.0)


SAMPLED: list[SamplingConfig] = []


async def notes_sampling(call: GenerateCall) -> Response:
    SAMPLED.append(call.sampling)
    return RESPONSE


def test_a_source_has_its_own_sampling_and_reward_and_an_evaluation_those_of_evaluations() -> None:
    own = own_sampling(SAMPLING, SourceConfig(path="words.jsonl", temperature=0.5))
    notes = Hook("generate function", f"{__name__}:notes_sampling")
    episodes = replace(
        EPISODES,
        generate=notes,
        sets={"math": SetHooks(SamplingConfig(max_new_tokens=4, temperature=0.0), notes, EPISODES.reward)},
        rewards={"words": Ones()},  # type: ignore[dict-item]
        samplings={"words": own},
    )
    SAMPLED.clear()
    groups = []
    for source, evaluation in (("words", False), ("sums", False), ("words", True)):
        prompt = msgspec.structs.replace(JOB.prompt, source=source)
        job = msgspec.structs.replace(JOB, prompt=prompt, evaluation=evaluation, set="math", row=5)
        groups.append(asyncio.run(episodes.group(AtVersion2(), job))[0])  # type: ignore[arg-type]
    assert [(s.temperature, s.max_new_tokens) for s in SAMPLED] == [(0.5, 4), (1.0, 4), (0.0, 4)]
    assert [group.samples[0].reward for group in groups] == [1.0, 0.5, 0.5]
    meta = groups[0].meta(0)
    assert (meta.source, meta.row) == ("words", 5)


def test_a_group_reward_scores_after_the_reward_and_not_in_evaluations_that_have_one() -> None:
    sys.modules[__name__].ACTION = lambda engine: RESPONSE  # type: ignore[attr-defined]
    job = msgspec.structs.replace(JOB, samples=2, seeds=[0, 1])
    held_out = msgspec.structs.replace(job, evaluation=True, set="math")
    both = replace(EPISODES, group_reward=Ranked())
    alone = replace(both, reward=None)
    for episodes, one, rewards in (
        (both, job, [0.5, 1.5]),
        (alone, job, [0.0, 1.0]),
        (both, held_out, [0.5, 0.5]),
        (alone, held_out, [0.0, 1.0]),
    ):
        training = SetHooks(SAMPLING, EPISODES.generate, episodes.reward, group_reward=episodes.group_reward)
        sets = hooks_of_sets(RolloutConfig(reward="m:f"), {"math": EvalConfig(path="e")}, training, None)  # type: ignore[arg-type]
        group, _ = asyncio.run(replace(episodes, sets=sets).group(AtVersion2(), one))
        assert [sample.reward for sample in group.samples] == rewards
