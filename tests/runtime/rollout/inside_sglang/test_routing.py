"""The routing that comes back is the one that a response was really computed with: for every token, cached ones too.

The engine's routers are disturbed by chance at every call (`benchmarks/routing_disturbance`), so a prompt that is
computed twice is routed in two ways, and half of the choices are not the model's own. Transformers' model is then told
the experts that came back: its log-probabilities equal the engine's only if each of them is right.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.engine.test_families import weights_of
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.messages.jobs import Prompt
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.engine import Engine, Generation
from verst.runtime.rollout.generate import Conversation, GenerateCall

DISTURBANCE = Path(__file__).parents[4] / "benchmarks" / "routing_disturbance"
CHUNK, POOL = 48, 1500  # tokens of a prefill, and of the whole cache


pytestmark = pytest.mark.long  # servers of their own


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="overlapping batches"),  # as on a GPU
        pytest.param(True, id="batch after batch"),
    ],
)
def engine(request: pytest.FixtureRequest, start_engine: Callable[..., Engine]) -> Iterator[Engine]:
    """With a small cache and short chunks: prompts are computed in parts, and prefixes are evicted."""
    sglang = {
        "chunked-prefill-size": CHUNK,
        "max-total-tokens": POOL,
        "disable-overlap-schedule": request.param,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(DISTURBANCE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("ROUTING_NOISE", "0.5")
        yield start_engine("qwen3_moe", sglang=sglang)


def prompt_of(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 64, length).tolist()


def told(model: Any, routing: np.ndarray) -> list[Any]:
    """Makes the model's routers take rows of `routing`, [tokens, layers, K], one call after another."""
    hooks = []
    for layer, rows in zip(model.model.layers, np.moveaxis(routing, 1, 0), strict=True):
        rest = [torch.from_numpy(rows.astype(np.int64))]

        def choose(gate: Any, inputs: Any, output: Any, rest: list[torch.Tensor] = rest) -> Any:
            logits = output[0]
            experts, rest[0] = rest[0][: len(logits)], rest[0][len(logits) :]
            weights = functional.softmax(logits, dim=-1, dtype=torch.float).gather(1, experts)
            return logits, weights / weights.sum(-1, keepdim=True), experts

        hooks.append(layer.mlp.gate.register_forward_hook(choose))
    return hooks


def expected(prompt: list[int], answer: Generation, parts: list[tuple[Any, int]]) -> np.ndarray:
    """Log-probabilities of the answer where each model of `parts` computes so many tokens, with the given routing."""
    from transformers import DynamicCache

    ids = torch.tensor([[*prompt, *answer.ids.tolist()]])[:, :-1]
    cache, logits, begin = DynamicCache(), [], 0
    assert answer.routing is not None
    for model, tokens in parts:
        span = slice(begin, begin + tokens)
        hooks = told(model, answer.routing[span])
        with torch.no_grad():
            logits.append(model(ids[:, span], past_key_values=cache, use_cache=True).logits[0])
        for hook in hooks:
            hook.remove()
        begin += tokens
    assert begin == ids.shape[1]
    logprobs = torch.cat(logits)[len(prompt) - 1 :].log_softmax(-1)
    return logprobs.gather(-1, torch.from_numpy(answer.ids).long()[:, None])[:, 0].numpy()


def assert_told_right(prompt: list[int], answer: Generation, model: Any) -> None:
    whole = expected(prompt, answer, [(model, len(prompt) + len(answer.ids) - 1)])
    np.testing.assert_allclose(answer.logprobs, whole, atol=1e-4)


async def ask(engine: Engine, prompts: list[list[int]], tokens: int = 24) -> list[Generation]:
    sampling = SamplingConfig(max_new_tokens=tokens)
    return await asyncio.gather(*(engine.generate(p, sampling, seed) for seed, p in enumerate(prompts)))


def test_the_routers_are_disturbed(engine: Engine, run: Any) -> None:
    """Else nothing here would be shown: the same prompt, computed twice, is routed in two ways."""
    prompt, model = prompt_of(30, 0), tiny_models.build("qwen3_moe")
    rows = []
    for _ in range(2):
        [answer] = run(ask(engine, [prompt]))
        rows.append(answer.routing[: len(prompt)])
        run(engine.flush_cache())
    assert (np.sort(rows[0]) != np.sort(rows[1])).any(-1).mean() > 0.2
    free = (
        model(torch.tensor([[*prompt, *answer.ids.tolist()]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    )
    own = free.detach().gather(-1, torch.from_numpy(answer.ids).long()[:, None])[:, 0].numpy()
    assert np.abs(own - answer.logprobs).max() > 1e-2


@pytest.mark.parametrize("length", [7, 40, 130], ids=["short", "one chunk", "three chunks"])
def test_siblings_that_come_together(length: int, engine: Engine, run: Any) -> None:
    """All of a group at once: none has computed another prefix than the one whose routing it is told."""
    model = tiny_models.build("qwen3_moe")
    prompt = prompt_of(length, length)
    answers = run(ask(engine, [prompt] * 8))
    for answer in answers:
        assert_told_right(prompt, answer, model)
    # The prompt was computed once, and the others took it from the cache.
    assert sorted(answer.cached_tokens for answer in answers) == [0] + [length - 1] * 7
    shared = [answer.routing[: length - 1] for answer in answers]
    for rows in shared[1:]:
        np.testing.assert_array_equal(rows, shared[0])
    assert len({answer.routing[length - 1].tobytes() for answer in answers}) > 1, (
        "each computed its last token"
    )


def test_prompts_that_have_parts_in_common(engine: Engine, run: Any) -> None:
    """Prefixes of every length, at the same time: the cache's nodes are split again and again."""
    model = tiny_models.build("qwen3_moe")
    stem = prompt_of(120, 1)
    prompts = [stem[: 5 + 9 * n] + prompt_of(4 + n, 100 + n) for n in range(12)]
    for order in (prompts, prompts[::-1], prompts):
        for prompt, answer in zip(order, run(ask(engine, order)), strict=True):
            assert_told_right(prompt, answer, model)


def test_a_cache_that_is_too_small(engine: Engine, run: Any) -> None:
    """More prompts than the cache holds, each asked again: slots are evicted and given to others."""
    model = tiny_models.build("qwen3_moe")
    prompts = [prompt_of(100, 200 + n) for n in range(24)]
    cached = []
    for _ in range(2):
        for first in range(0, len(prompts), 6):
            some = prompts[first : first + 6]
            for prompt, answer in zip(some, run(ask(engine, some)), strict=True):
                assert_told_right(prompt, answer, model)
                cached.append(answer.cached_tokens)
    assert 0 in cached[len(prompts) :], "something was evicted"


async def talk(engine: Engine, prompt: list[int], seed: int) -> tuple[Conversation, list[Generation]]:
    """Three turns with texts of others between them."""
    asked = Prompt(ids=prompt, text="", label=None, metadata={})
    sampling = SamplingConfig(max_new_tokens=12)
    conversation = Conversation(
        GenerateCall(engine=engine, prompt=asked, sampling=sampling, seed=seed, tokenizer=None)
    )
    turns = []
    for turn in range(3):
        turns.append(await conversation.generate())
        if turn < 2:
            conversation.add(prompt_of(6, 301 + turn))
    return conversation, turns


def test_a_conversation_takes_its_earlier_turns_from_the_cache(engine: Engine, run: Any) -> None:
    async def all_talk() -> list[tuple[Conversation, list[Generation]]]:
        return await asyncio.gather(*(talk(engine, prompt_of(30, 310 + n), n) for n in range(4)))

    model = tiny_models.build("qwen3_moe")
    for conversation, turns in run(all_talk()):
        last = turns[-1]
        # All but what was added and the token before, which no weights have seen yet.
        assert last.cached_tokens >= last.prompt_tokens - 7
        np.testing.assert_array_equal(conversation.response().routing, last.routing)
        assert_told_right(conversation.ids[: last.prompt_tokens], last, model)


def test_siblings_that_talk_keep_each_turns_routing(engine: Engine, run: Any) -> None:
    """A later turn takes tokens that siblings have in common from one of them: earlier turns keep their own."""

    async def all_talk() -> list[tuple[Conversation, list[Generation]]]:
        return await asyncio.gather(*(talk(engine, prompt_of(30, 320), n) for n in range(4)))

    model = tiny_models.build("qwen3_moe")
    for conversation, turns in run(all_talk()):
        assert_told_right(prompt_of(30, 320), turns[0], model)
        routing = conversation.response().routing
        np.testing.assert_array_equal(routing[: len(turns[0].routing)], turns[0].routing)
        assert turns[-1].cached_tokens >= turns[-1].prompt_tokens - 7


def test_new_weights_under_requests_in_flight(engine: Engine, run: Any) -> None:
    """The old tokens keep their cache and their routing, the new ones attend to it; who comes after has none of it."""
    old, new = tiny_models.build("qwen3_moe"), tiny_models.build("qwen3_moe", 5)
    prompt = prompt_of(20, 400)

    async def change(wait_s: float) -> tuple[list[Generation], list[Generation], int]:
        source = await WeightSource.connect(engine)
        before = engine.version
        requests = [asyncio.create_task(ask(engine, [prompt] * 4, tokens=250))]
        await asyncio.sleep(wait_s)
        await engine.pause("in_place")
        waiting = asyncio.create_task(ask(engine, [prompt] * 4))  # come while the old weights are there
        await asyncio.sleep(0.2)
        await source.send(weights_of(new), before + 1)
        await engine.resume()
        late = [*await waiting, *await ask(engine, [prompt] * 4)]
        answers = (await asyncio.gather(*requests))[0]
        late += await ask(engine, [prompt] * 4)
        await engine.pause("in_place")
        await source.send(weights_of(old), before + 2)
        await engine.resume()
        await source.close()
        return answers, late, before

    for wait_s in (0.3, 1.0, 3.0):  # a busy machine may not have begun
        answers, late, before = run(change(wait_s))
        mixed = [answer for answer in answers if len(set(answer.weight_versions.tolist())) == 2]
        for answer in late:
            assert (answer.weight_versions == before + 1).all()
            assert_told_right(prompt, answer, new)
        if mixed:
            break
    assert mixed, "no request was in flight during the change"
    for answer in mixed:
        of_old = len(prompt) - 1 + int((answer.weight_versions == before).sum())
        parts = [(old, of_old), (new, len(prompt) + len(answer.ids) - 1 - of_old)]
        np.testing.assert_allclose(answer.logprobs, expected(prompt, answer, parts), atol=1e-4)
