"""Two tensor-parallel ranks without a GPU: same answers, weights on both, a fault on either is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.engine.test_families import TEMPERATURES, assert_agrees, weights_of
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.rollout.engine.engine import Engine


@pytest.mark.long
def test_two_ranks_answer_receive_and_compare(start_engine: Callable[..., Engine], run: Any) -> None:
    engine = start_engine("qwen3_moe", sglang={"tp-size": 2})
    for seed, temperature in enumerate(TEMPERATURES):
        assert_agrees(engine, tiny_models.build("qwen3_moe"), run, temperature, seed)
    model = tiny_models.build("qwen3_moe", 1)
    weights = weights_of(model)
    source = run(WeightSource.connect(engine, ranks=2))
    try:
        run(engine.pause("in_place"))
        run(source.send(weights, 1))
        run(engine.resume())
        assert_agrees(engine, model, run, 1.0, seed=7)
        reports = run(source.compare(weights, 1))
        assert all(report.equal for report in reports), reports
        assert sum(report.tensors for report in reports) == len(weights)
        planted = "model.layers.1.self_attn.q_proj.weight"
        weights[planted][-1, -1] = torch.nan  # the last head is rank 1's
        reports = run(source.compare(weights, 1))
        assert [name for report in reports for name in report.unequal] == [f"rank 1: {planted}: 1 elements"]
    finally:
        run(source.close())
