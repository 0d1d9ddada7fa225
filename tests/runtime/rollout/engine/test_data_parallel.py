"""An engine with data-parallel attention: two groups with requests of their own are one engine to whoever asks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.block_source import BlockSource
from tests.runtime.rollout.engine.test_families import (
    PROMPT,
    assert_agrees,
    expected_logprobs,
    weights_of,
)
from tests.runtime.rollout.engine_shapes import DATA_PARALLEL
from tests.runtime.rollout.in_flight import generate_through
from tests.runtime.rollout.inside_sglang.test_blocks import config_of
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.arguments import CPU_STUBS
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Generation
from verst.runtime.rollout.engine.memory import EngineMemory
from verst.sync.layout.layout import ParallelSizes

pytestmark = pytest.mark.long


def experts_of(model: Any, ids: torch.Tensor) -> np.ndarray:
    """int [layers, tokens, K], sorted: what transformers' routers choose."""
    with torch.no_grad():
        logits = model(ids, output_router_logits=True).router_logits
    return torch.stack([layer.topk(2, dim=-1).indices.sort(-1).values for layer in logits]).numpy()


def test_groups_with_requests_at_the_same_time_answer_with_their_own_experts(
    engine_of: Any, run: Any
) -> None:
    """Their tokens share the experts' batches, in which each group finds its own again."""
    engine, model = engine_of("qwen3_moe", DATA_PARALLEL), tiny_models.build("qwen3_moe")

    async def at_once() -> list[Any]:
        samplings = [SamplingConfig(max_new_tokens=n) for n in (1, 7, 30, 64, 12)]
        return await asyncio.gather(*(engine.generate(PROMPT, s, seed) for seed, s in enumerate(samplings)))

    for made in run(at_once()):
        np.testing.assert_allclose(made.logprobs, expected_logprobs(model, made, 1.0), atol=1e-4)
        ids = torch.tensor([[*PROMPT, *made.ids.tolist()]])
        assert made.routing.shape == (ids.shape[1] - 1, 3, 2)
        routing = np.sort(made.routing, -1).transpose(1, 0, 2)
        np.testing.assert_array_equal(routing, experts_of(model, ids)[:, : ids.shape[1] - 1])


def test_a_token_carries_the_version_that_generated_it_in_either_group(engine_of: Any, run: Any) -> None:
    engine, old = engine_of("qwen3_moe", DATA_PARALLEL), tiny_models.build("qwen3_moe")
    first = engine.version
    blocks = BlockSource(engine, config_of("qwen3_moe"), ParallelSizes(world=2, tp=2))
    run(blocks.connect(engine_ranks=2))

    async def change() -> list[Generation]:
        long = SamplingConfig(max_new_tokens=200)
        requests = [asyncio.create_task(engine.generate(PROMPT, long, seed)) for seed in range(8)]
        await asyncio.sleep(1)
        await blocks.send(weights_of(tiny_models.build("qwen3_moe", 3)), first + 1)
        made = await asyncio.gather(*requests)
        await blocks.send(weights_of(old), first + 2)
        return made

    crossed = 0
    for made in run(change()):
        as_before = np.abs(made.logprobs - expected_logprobs(old, made, 1.0)) < 1e-4
        by_old_weights = len(made.ids) if as_before.all() else int(as_before.argmin())
        assert (made.weight_versions == first).sum() == by_old_weights
        assert set(made.weight_versions.tolist()) <= {first, first + 1}
        crossed += 0 < by_old_weights < len(made.ids)
    run(blocks.close())
    assert crossed >= 3, "requests of both groups were in flight when the version came"


@pytest.mark.parametrize("how", ["blocks", "double_buffer", "broadcast"])
def test_requests_in_flight_in_either_group_know_their_versions(how: str, engine_of: Any, run: Any) -> None:
    engine = engine_of("qwen3_moe", DATA_PARALLEL)
    weights, first = weights_of(tiny_models.build("qwen3_moe")), engine.version
    whole = run(WeightSource.connect(engine, ranks=2))
    versions = range(first + 1, first + 4)
    if how == "broadcast":

        async def send(version: int) -> None:
            await engine.pause("retract" if version % 2 else "in_place")
            await whole.send(weights, version)
            await engine.resume()

        run(generate_through(engine, [partial(send, version) for version in versions]))
    else:
        blocks = BlockSource(engine, config_of("qwen3_moe"), ParallelSizes(world=4, tp=2, ep=2, etp=1))
        run(blocks.connect(engine_ranks=2, double_buffer=how == "double_buffer"))
        run(generate_through(engine, [partial(blocks.send, weights, version) for version in versions]))
        run(blocks.close())
    assert all(report.equal for report in run(whole.compare(weights, first + 3)))
    run(whole.close())


@pytest.mark.parametrize("idle", [(True, True), (True, False), (False, True)])
def test_a_flush_succeeds_when_it_has_in_every_group(idle: tuple[bool, bool]) -> None:
    """SGLang's own method, as the plug-in leaves it, with the groups' answers in a given order."""
    found = subprocess.run(
        [sys.executable, "-P", "-c", _FLUSH, *(str(int(one)) for one in idle)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(CPU_STUBS)},
    )
    assert found.stdout.split() == [str(all(idle))], found.stderr[-2000:]


_FLUSH = """
import asyncio, sys
from types import SimpleNamespace
from verst.runtime.rollout.inside_sglang import groups
groups.apply()
from sglang.srt.managers.io_struct import FlushCacheReqOutput
from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin

async def ask(order):
    return [FlushCacheReqOutput(success=bool(int(one))) for one in sys.argv[1:]]

manager = SimpleNamespace(auto_create_handle_loop=lambda: None, flush_cache_communicator=ask)
print(asyncio.run(TokenizerControlMixin.flush_cache(manager)).success)
"""


def test_an_engine_is_idle_and_gives_memory_back_when_both_groups_are(engine_of: Any, run: Any) -> None:
    """SGLang ends when it is asked for the memory of a group that has a request in flight."""
    engine = engine_of("qwen3_moe", DATA_PARALLEL)

    async def give_back_beside_a_request() -> Generation:
        request = asyncio.create_task(engine.generate(PROMPT, SamplingConfig(max_new_tokens=80), 1))
        await asyncio.sleep(0.5)
        for _ in range(3):  # which group answers first is by chance
            with pytest.raises(EngineError, match="400"):
                await engine.flush_cache()
        memory = EngineMemory(engine)
        await memory.hold("weights")
        await memory.hold("all")
        return await request

    for _ in range(2):  # requests go to the groups in turn
        assert len(run(give_back_beside_a_request()).ids) > 0
    assert engine.alive()
    assert_agrees(engine, tiny_models.build("qwen3_moe"), run, 1.0, seed=7)
