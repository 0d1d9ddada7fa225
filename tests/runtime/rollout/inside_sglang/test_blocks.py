"""Blocks promise: whatever the trainer's layout, the engine's parameters are the trainer's, bit for bit."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
import torch

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.block_source import BlockSource
from tests.runtime.rollout.engine.test_families import FAMILIES, assert_agrees, weights_of
from tests.runtime.rollout.engine_shapes import DATA_PARALLEL, TENSOR_PARALLEL, WITH_EXPERTS, WITHIN_GROUPS
from tests.runtime.rollout.in_flight import generate_through
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.inside_sglang.weight_compare import left_as_loaded
from verst.sync.layout.layout import ParallelSizes

LAYOUTS = {
    "llama": ParallelSizes(world=4, tp=2, pp=2),
    "qwen3": ParallelSizes(world=4, tp=2, pp=1),  # two replicas
    "qwen3_moe": ParallelSizes(world=4, tp=2, pp=1, ep=2, etp=1),
    "deepseek_v3": ParallelSizes(world=2, pp=1, ep=2, etp=1),
    "deepseek_v3_odd": ParallelSizes(
        world=2, tp=2, pp=1, ep=2, etp=1
    ),  # each rank pads its part of the vocabulary
}


def config_of(family: str) -> dict[str, Any]:
    model = tiny_models.build(family)
    return {**model.config.to_dict(), "architectures": [type(model).__name__]}


def trained(family: str, seed: int) -> Any:
    """Other weights, but for what no training changes."""
    first, model = tiny_models.build(family), tiny_models.build(family, seed)
    for (name, own), (_, loaded) in zip(model.named_buffers(), first.named_buffers(), strict=True):
        if left_as_loaded(name):
            own.copy_(loaded)
    return model


def sent(model: Any) -> dict[str, torch.Tensor]:
    return {name: t for name, t in weights_of(model).items() if not left_as_loaded(name)}


@pytest.mark.parametrize(
    "family",
    [
        *FAMILIES,
        # Servers of their own.
        *(pytest.param(family, marks=pytest.mark.long) for family in ("deepseek_v3", "deepseek_v3_odd")),
    ],
)
def test_versions_arrive_as_blocks_and_are_used(family: str, engine_of: Any, run: Any) -> None:
    engine = engine_of(family)
    blocks = BlockSource(engine, config_of(family), LAYOUTS[family])
    run(blocks.connect())
    whole = run(WeightSource.connect(engine))
    try:
        assert_agrees(engine, tiny_models.build(family), run, 1.0, seed=7)
        for seed in (3, 4, 0):  # ends as it began
            model, version = trained(family, seed), engine.version + 1
            weights = sent(model)
            run(blocks.send(weights, version))
            assert engine.version == version
            assert_agrees(engine, model, run, 1.0, seed=7)
            # One bucket: of DeepSeek-V3 the loader wants some tensors in one call.
            reports = run(whole.compare(weights, version, buckets=1))
            assert all(report.equal for report in reports), reports
            joined = sum("q_a_proj" in name for name in weights)  # with another, before it is written
            assert sum(report.tensors for report in reports) == len(weights) - joined
    finally:
        run(whole.close())
        run(blocks.close())


@pytest.mark.parametrize(
    "how",
    [
        {"shared": True},
        pytest.param({}, marks=pytest.mark.long),
        pytest.param({"double_buffer": True}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_requests_in_flight_go_on_under_the_new_version(how: dict, engine_of: Any, run: Any) -> None:
    engine = engine_of("qwen3_moe")
    blocks = BlockSource(engine, config_of("qwen3_moe"), LAYOUTS["qwen3_moe"])
    whole = run(WeightSource.connect(engine))
    weights = weights_of(tiny_models.build("qwen3_moe"))
    first = engine.version
    run(blocks.connect(**how))
    rounds = [partial(blocks.send, weights, version) for version in range(first + 1, first + 4)]
    run(generate_through(engine, rounds))
    assert all(report.equal for report in run(whole.compare(weights, first + 3)))
    run(whole.close())
    run(blocks.close())


def test_with_a_second_buffer_the_engine_generates_while_it_receives(engine_of: Any, run: Any) -> None:
    engine = engine_of("qwen3_moe")
    blocks = BlockSource(engine, config_of("qwen3_moe"), LAYOUTS["qwen3_moe"])
    run(blocks.connect(double_buffer=True))
    whole = run(WeightSource.connect(engine))
    first, weights = engine.version, weights_of(tiny_models.build("qwen3_moe"))
    other = weights_of(trained("qwen3_moe", 3))
    made: list[Any] = []

    async def generate_meanwhile(sending: asyncio.Task) -> None:
        while not sending.done():
            made.append(await engine.generate([5, 9], SamplingConfig(max_new_tokens=8), len(made)))

    async def slow_round() -> Any:
        sending = asyncio.create_task(blocks.send(other, first + 1, late_s=2.0))
        await generate_meanwhile(sending)
        return await sending

    taken = run(slow_round())
    assert taken.transfer >= 1.5
    assert taken.stopped < 1.0
    assert sum(set(g.weight_versions.tolist()) == {first} for g in made) >= 3, "under the old version"
    assert all(report.equal for report in run(whole.compare(other, first + 1)))

    async def nobody_sends() -> None:
        receiver = blocks._receiver
        with pytest.raises(EngineError, match=r"deadline|broken off"):
            await receiver.receive_blocks(first + 2, "in_place", 2.0, go_on=True)
        await engine.resume()

    run(nobody_sends())
    assert engine.version == first + 1
    assert all(report.equal for report in run(whole.compare(other, first + 1))), "as it was"
    run(blocks.close())
    blocks = BlockSource(engine, config_of("qwen3_moe"), LAYOUTS["qwen3_moe"])
    run(blocks.connect())
    run(blocks.send(weights, first + 3))  # ends as it began
    run(whole.close())
    run(blocks.close())


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, TENSOR_PARALLEL) for family in ("llama", "qwen3", "qwen3_moe")),
        ("qwen3_moe", DATA_PARALLEL),
        ("qwen3_moe", WITH_EXPERTS),
        ("qwen3_moe", WITHIN_GROUPS),
    ],
    ids=str,
)
def test_an_engine_of_several_ranks_takes_blocks_from_every_layout(
    family: str, shape: dict[str, Any], engine_of: Any, run: Any
) -> None:
    engine = engine_of(family, shape)
    two_stages: dict[str, Any] = {"pp": 2, "first_stage_layers": 1}
    layouts = [
        ParallelSizes(world=1),
        ParallelSizes(world=2, **two_stages),
        ParallelSizes(world=2, tp=2),
        ParallelSizes(world=4, tp=2, **two_stages),
        ParallelSizes(world=4, tp=2),
    ]
    if family == "qwen3_moe":
        layouts += [
            ParallelSizes(world=2, ep=2),
            ParallelSizes(world=4, tp=2, ep=2, etp=1),
            ParallelSizes(world=4, tp=2, ep=2, etp=2),
            ParallelSizes(world=4, ep=2, etp=1, **two_stages),
            # Three layers and the embedding in four chunks.
            ParallelSizes(world=2, pp=2, vpp=2, embedding_in_split=True),
        ]
    if "dp-size" in shape:  # whose steps take several times as long over gloo
        layouts = layouts[1::2]
    ranks = shape["tp-size"]
    whole = run(WeightSource.connect(engine, ranks=ranks))
    for number, sizes in enumerate(layouts):
        # Ends as it began.
        model, version = tiny_models.build(family, len(layouts) - 1 - number), engine.version + 1
        weights = weights_of(model)
        blocks = BlockSource(engine, config_of(family), sizes)
        run(blocks.connect(engine_ranks=ranks, shared=number % 2 == 1, double_buffer=number % 3 == 2))
        run(blocks.send(weights, version))
        for seed in range(shape.get("dp-size", 1)):  # requests go to the groups in turn
            assert_agrees(engine, model, run, 1.0, seed=seed)
        reports = run(whole.compare(weights, version))
        assert all(report.equal for report in reports), (sizes, reports)
        assert sum(report.tensors for report in reports) == len(weights)
        run(blocks.close())
    run(whole.close())
