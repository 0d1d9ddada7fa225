"""What a rollout worker relies on: seeds, pausing, versions per token, errors with a reason, no orphans."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.engine.test_families import weights_of
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import KEEP_ALIVE_S, SERVER_KEEP_ALIVE_S, EngineError
from verst.runtime.rollout.engine.engine import Engine, Generation
from verst.runtime.rollout.engine.memory import EngineMemory

PROMPT = [5, 9, 17, 30, 8, 8, 21]
LONG = SamplingConfig(max_new_tokens=400, temperature=1.0)
_DRAWS = 800


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("qwen3_moe")


def test_the_same_seed_gives_the_same_tokens_alone_and_in_company(engine: Engine, run: Any) -> None:
    sampling = [
        SamplingConfig(max_new_tokens=40),
        SamplingConfig(max_new_tokens=40, temperature=1.3, top_p=0.9),
        SamplingConfig(max_new_tokens=40, top_k=10),
    ]
    wanted = [(sampling[n % 3], 1000 + n) for n in range(6)]

    async def alone() -> list[Generation]:
        return [await engine.generate(PROMPT, s, seed) for s, seed in wanted]

    async def in_company() -> list[Generation]:
        others = [
            engine.generate(PROMPT[: 2 + n % 5], SamplingConfig(max_new_tokens=60), n) for n in range(16)
        ]
        mine = [engine.generate(PROMPT, s, seed) for s, seed in wanted]
        answers = await asyncio.gather(*others[:8], *mine, *others[8:])
        return answers[8 : 8 + len(mine)]

    first, second = run(alone()), run(in_company())
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    assert len({tuple(g.ids) for g in first}) == len(first), "other seeds give other tokens"
    unseeded = [run(engine.generate(PROMPT, sampling[0], None)) for _ in range(3)]
    assert len({tuple(g.ids) for g in unseeded}) > 1


def test_samples_follow_the_distribution(engine: Engine, run: Any) -> None:
    """The first token over 800 seeds is as frequent as its probability says (within 5 sigma)."""
    one = SamplingConfig(max_new_tokens=1)

    async def draw() -> list[Generation]:
        return await asyncio.gather(*(engine.generate(PROMPT, one, seed) for seed in range(_DRAWS)))

    draws = run(draw())
    probability = {int(g.ids[0]): float(np.exp(g.logprobs[0])) for g in draws}
    counts = np.bincount([int(g.ids[0]) for g in draws], minlength=64)
    for token, p in probability.items():
        sigma = (_DRAWS * p * (1 - p)) ** 0.5
        assert abs(counts[token] - _DRAWS * p) < 5 * sigma + 1, (token, counts[token], p)


def test_top_k_and_stop_are_obeyed(engine: Engine, run: Any) -> None:
    greedy = run(engine.generate(PROMPT, SamplingConfig(temperature=0, max_new_tokens=5), None))
    top_1 = run(engine.generate(PROMPT, SamplingConfig(top_k=1, max_new_tokens=5), 9))
    np.testing.assert_array_equal(greedy.ids, top_1.ids)
    assert greedy.finish == "length"


@pytest.mark.parametrize("mode", ["in_place", pytest.param("retract", marks=pytest.mark.long)])
def test_each_token_carries_the_version_that_generated_it(mode: str, engine: Engine, run: Any) -> None:
    """Weights change under requests in flight; log-probabilities before and after belong to each version."""
    old, new = tiny_models.build("qwen3_moe", 0), tiny_models.build("qwen3_moe", 5)
    before = engine.version

    async def change() -> tuple[list[Generation], Generation]:
        source = await WeightSource.connect(engine)
        requests = [asyncio.create_task(engine.generate(PROMPT, LONG, seed)) for seed in range(8)]
        await asyncio.sleep(0.4)
        await engine.pause(mode)
        await source.send(weights_of(new), before + 1)
        await engine.resume()
        late = await engine.generate(PROMPT, SamplingConfig(max_new_tokens=8), 1)
        answers = await asyncio.gather(*requests)
        await engine.pause(mode)
        await source.send(weights_of(old), before + 2)
        await engine.resume()
        await source.close()
        return answers, late

    answers, late = run(change())
    assert (late.weight_versions == before + 1).all()
    mixed = [g for g in answers if len(set(g.weight_versions.tolist())) == 2]
    assert mixed, "no request was in flight during the change"
    for generation in mixed:
        versions = generation.weight_versions
        assert (np.diff(versions) >= 0).all()
        first_new = int(np.argmax(versions))
        own = _logprobs(old, generation)
        np.testing.assert_allclose(generation.logprobs[:first_new], own[:first_new], atol=1e-4)
        assert abs(generation.logprobs[first_new] - own[first_new]) > 1e-3, "generated by the new weights"
        if mode == "retract":  # the cache was recomputed, so the rest is the new model's alone
            expected = _logprobs(new, generation)
            np.testing.assert_allclose(generation.logprobs[first_new:], expected[first_new:], atol=1e-4)


def _logprobs(model: Any, generation: Generation) -> np.ndarray:
    import torch

    ids = torch.tensor([[*PROMPT, *generation.ids.tolist()]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, ids[0, len(PROMPT) :, None])[:, 0].numpy()


def test_a_paused_engine_computes_nothing_and_goes_on(engine: Engine, run: Any) -> None:
    async def pause() -> tuple[bool, Generation]:
        await engine.pause("in_place")
        request = asyncio.create_task(engine.generate(PROMPT, SamplingConfig(max_new_tokens=4), 1))
        await asyncio.sleep(0.5)
        held = not request.done()
        await engine.resume()
        return held, await request

    held, generation = run(pause())
    assert held
    assert len(generation.ids) >= 1


def test_memory_is_released_once_nothing_is_in_flight_and_taken_again(engine: Engine, run: Any) -> None:
    async def scenario() -> None:
        memory = EngineMemory(engine)
        short = SamplingConfig(max_new_tokens=20)
        before = await engine.generate(PROMPT, short, seed=5)
        # SGLang would end if it were asked while a request is in flight.
        answer = asyncio.create_task(engine.generate(PROMPT, LONG, seed=5))
        await asyncio.sleep(0.2)
        releasing = asyncio.create_task(memory.hold("nothing"))
        await asyncio.wait({answer, releasing}, return_when=asyncio.FIRST_COMPLETED)
        assert answer.done()
        await releasing
        for what in ("weights", "nothing", "weights", "all", "all"):
            await memory.hold(what)
            assert memory.holds == what
        after = await engine.generate(PROMPT, short, seed=5)
        assert after.ids.tolist() == before.ids.tolist()  # without a memory saver the contents stay

    run(scenario())


def test_abort_returns_what_there_is(engine: Engine, run: Any) -> None:
    async def abort() -> Generation:
        request = asyncio.create_task(engine.generate(PROMPT, LONG, 3))
        await asyncio.sleep(0.15)
        await engine.abort()
        return await request

    generation = run(abort())
    assert len(generation.ids) == len(generation.logprobs) == len(generation.weight_versions)
    assert generation.finish in ("abort", "stop")


def test_a_cancelled_request_leaves_the_engine(engine: Engine, run: Any) -> None:
    async def cancel() -> Any:
        request = asyncio.create_task(engine.generate(PROMPT, LONG, 3))
        await asyncio.sleep(0.15)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0.3)
        await engine.flush_cache()  # refused while anything is in flight

    run(cancel())


def test_refusals_carry_sglangs_words(engine: Engine, run: Any) -> None:
    with pytest.raises(
        EngineError, match=r"/generate was refused, HTTP 400: .*longer than the model's context"
    ):
        run(engine.generate([5] * 600, SamplingConfig(), 1))
    with pytest.raises(EngineError, match=r"destroy_weights_update_group was refused.*does not exist"):
        run(engine.leave_weights_group("never joined"))
    assert engine.alive()


def test_a_wrong_key_is_refused(engine: Engine) -> None:
    url = engine._client.url
    for path in ("/generate", "/pause_generation", "/update_weights_from_distributed", "/flush_cache"):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            assert httpx.post(url + path, json={}, headers=headers, timeout=10).status_code == 401, path


def test_the_server_keeps_a_connection_for_longer_than_the_client(engine: Engine) -> None:
    """One that the server closes while a request is on its way would lose the request. uvicorn's own limit is 5 s."""
    url = urlsplit(engine._client.url)
    assert KEEP_ALIVE_S < SERVER_KEEP_ALIVE_S
    with contextlib.closing(http.client.HTTPConnection(url.hostname, url.port, timeout=10)) as connection:
        for pause in (0, 6):
            time.sleep(pause)
            connection.request("GET", "/model_info", headers=engine._client._http.headers)
            assert connection.getresponse().read()
            connection.auto_open = 0  # the same connection from now on


def test_the_key_is_neither_in_the_process_list_nor_in_the_log(engine: Engine) -> None:
    key = engine._client._http.headers["Authorization"].removeprefix("Bearer ")
    main = psutil.Process(engine.pid)
    for process in [main, *main.children(recursive=True)]:
        assert key not in " ".join(process.cmdline())
    assert key not in engine._server._log.read_text()
    assert engine._server._log.stat().st_mode & 0o077 == 0


def config(**sglang: Any) -> RolloutConfig:
    return RolloutConfig(reward="unused:here", start_timeout_s=280, sglang=sglang)


def start(folder: Path, rollout: RolloutConfig) -> Any:
    model = ModelConfig(path=str(folder), dtype="float32")
    return Engine.start(model, rollout, log=folder / "engine.log", routing=False, seed=1, device="cpu")


@pytest.mark.long  # a server of its own
def test_an_engine_that_dies_at_start_says_why(run: Any, tmp_path: Path) -> None:
    """As soon as it is dead, with its last lines, and not when the time to start is over."""
    tiny_models.save("llama", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        EngineError, match=r"the SGLang server ended \(exit 1\)(.|\n)*engine.log(.|\n)*config.json"
    ):
        run(start(tmp_path, config()))


def test_a_model_that_is_missing_says_so(run: Any, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nothing: there is no such model folder"):
        run(start(tmp_path / "nothing", config()))


def test_an_engine_that_is_too_slow_is_given_up_and_gone(run: Any, tmp_path: Path) -> None:
    tiny_models.save("llama", tmp_path)
    slow = RolloutConfig(reward="unused:here", start_timeout_s=1)
    with pytest.raises(EngineError, match="the SGLang server was not up after 1 s"):
        run(start(tmp_path, slow))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]


def test_reset_leaves_nothing_of_an_earlier_life(engine: Engine, run: Any) -> None:
    """A trainer that died in a round leaves the engine paused, with requests in flight and a full cache."""

    async def life() -> Generation:
        prompt = [*PROMPT * 8]
        await engine.generate(prompt, SamplingConfig(max_new_tokens=2), 1)
        assert (await engine.generate(prompt, SamplingConfig(max_new_tokens=2), 1)).cached_tokens > 0
        lost = asyncio.create_task(engine.generate(PROMPT, LONG, 2))
        await asyncio.sleep(0.2)
        await engine.pause("in_place")
        lost.cancel()
        await engine.reset()
        return await engine.generate(prompt, SamplingConfig(max_new_tokens=2), 1)

    assert run(life()).cached_tokens == 0
