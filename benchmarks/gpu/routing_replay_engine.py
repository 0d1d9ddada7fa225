"""What taking down the experts costs an engine: work in turns to an engine that does and to one that does not, both on
the same GPU in one start. Requests of uneven length end one by one, as in rollout, and others take their places.

Correctness first: what came back of many requests at once is compared with what the same tokens are given when each
request is computed once more, alone and as a prompt. In bf16 some choices differ between the two. Another request's
routing, or one that is a token off, agrees no more than neighbouring tokens do; a few wrong rows are not seen in this.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.interleaved import interleaved
from benchmarks.gpu.shapes import write_model
from benchmarks.gpu.trainer_speed import machine
from verst.runtime.messages.model_config import ModelConfig
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.engine import Engine, Generation

PROMPT = 128
WAVES = 6  # requests of a turn, for each that is served at once
START_S = 240.0  # the first start on a machine compiles kernels
# Two engines share the GPU, and each sees less and less free while the other starts: the number of tokens bounds what
# they take.
ON_A_GPU = {
    "attention-backend": "triton",
    "grammar-backend": "none",
    "mem-fraction-static": 0.8,
    "max-total-tokens": 196608,
    "cuda-graph-max-bs": 64,
}


async def measure(options: Any, note: Callable[[dict[str, Any]], None]) -> None:
    """Gives `note` the figures after each round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", options.shape, options.layers, options.device)
        began = time.monotonic()
        starting = [start(model, folder, options, capture) for capture in (False, True)]
        started = await asyncio.gather(*starting, return_exceptions=True)
        engines = [engine for engine in started if isinstance(engine, Engine)]
        try:
            for failure in started:
                if isinstance(failure, BaseException):
                    raise failure
            about = {
                "layers": options.layers,
                "shape": options.shape,
                "concurrency": options.concurrency,
                "prompt_tokens": PROMPT,
                "response_tokens": [options.response // 2, options.response * 3 // 2],
                "requests": options.concurrency * WAVES,
                "start_seconds": time.monotonic() - began,
                **machine(),
            }
            about["routing"] = await agreement(engines[1], options.concurrency)
            await compare(options, *engines, lambda found: note(about | {"tokens_per_second": found}))
        finally:
            await asyncio.gather(*(engine.stop() for engine in engines))


async def start(model: Path, folder: Path, options: Any, capture: bool) -> Engine:
    """An engine that takes experts down, or one that does not."""
    sglang = {"skip-tokenizer-init": True} | (ON_A_GPU if options.device == "cuda" else {})
    rollout = RolloutConfig(
        reward="unused:here",
        concurrency=options.concurrency,
        start_timeout_s=START_S,
        sglang=sglang,
    )
    log = folder / f"engine-{'with' if capture else 'without'}.log"
    return await Engine.start(
        ModelConfig(path=str(model), dtype="bfloat16"),
        rollout,
        log=log,
        routing=capture,
        seed=1,
        device=options.device,
    )


async def agreement(engine: Engine, concurrency: int) -> dict[str, float]:
    """Shares of the experts that both computations chose; the least is that of one request.

    Raises RuntimeError where it is nearer to what neighbouring tokens have in common than to all.
    """
    random = np.random.default_rng(1)
    prompts = random.integers(3, 500, (2 * concurrency, PROMPT)).tolist()
    lengths = random.integers(1, 64, len(prompts)).tolist()

    async def first(seed: int) -> Generation:
        return await engine.generate(prompts[seed], SamplingConfig(max_new_tokens=lengths[seed]), seed)

    answers = await asyncio.gather(*map(first, range(len(prompts))))
    await engine.flush_cache()
    shares, others = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *answer.ids[:-1].tolist()]
        again = await engine.generate(ids, SamplingConfig(max_new_tokens=1), 0)
        assert answer.routing is not None
        assert again.routing is not None
        shares.append(_in_common(answer.routing, again.routing))
        others.append(_in_common(answer.routing, np.roll(again.routing, 1, axis=0)))
    found = {
        "agree": float(np.mean(shares)),
        "least": min(shares),
        "neighbours_agree": float(np.mean(others)),
    }
    if found["least"] < (1 + found["neighbours_agree"]) / 2:
        raise RuntimeError(f"the routing that came back under load is not the tokens': {found}")
    return found


def _in_common(one: np.ndarray, other: np.ndarray) -> float:
    """Of [tokens, layers, K] each, the share of `one`'s experts that `other` has for the same token and layer."""
    return float((one[..., :, None] == other[..., None, :]).any(-1).mean())


async def compare(
    options: Any, without: Engine, capturing: Engine, note: Callable[[dict[str, Any]], None]
) -> None:
    """Tokens per second of each, in turns of the same work."""
    loop = asyncio.get_running_loop()
    random = np.random.default_rng(0)
    requests = options.concurrency * WAVES
    prompts = random.integers(3, 500, (requests, PROMPT)).tolist()
    lengths = random.integers(options.response // 2, options.response * 3 // 2, requests).tolist()

    def turn(engine: Engine) -> float:
        work = speed(engine, prompts, lengths, options.concurrency)
        return asyncio.run_coroutine_threadsafe(work, loop).result(300)

    arms = {"without": lambda: turn(without), "returned": lambda: turn(capturing)}

    def turns() -> None:
        for arm in arms.values():  # warm
            arm()
        interleaved(arms, options.rounds, options.seconds, note)

    await asyncio.to_thread(turns)


async def speed(engine: Engine, prompts: list[list[int]], lengths: list[int], concurrency: int) -> float:
    """Generated tokens per second; nothing of an earlier turn is cached."""
    await engine.flush_cache()
    room = asyncio.Semaphore(concurrency)

    async def one(seed: int) -> int:
        async with room:
            sampling = SamplingConfig(max_new_tokens=lengths[seed])
            return len((await engine.generate(prompts[seed], sampling, seed)).ids)

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(one, range(len(prompts)))))
    return tokens / (time.perf_counter() - began)
