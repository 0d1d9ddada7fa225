"""A rank that steps aside frees the memory that it reports, and then trains on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import ONE
from tests.runtime.trainer.tiny_models import Layout
from verst.runtime.trainer.step.memory import DeviceMemory

DISTRIBUTED = Layout(2, {"use-distributed-optimizer": True})


@pytest.mark.parametrize(
    ("layout", "dtype", "state"),
    [
        pytest.param(ONE, "float32", 2, marks=pytest.mark.long),  # moments, besides the weights
        (ONE, "bfloat16", 6),  # fp32 masters and moments: 12 bytes for each 2
        # the same, spread over two ranks
        pytest.param(DISTRIBUTED, "bfloat16", 3, marks=pytest.mark.long),
    ],
)
def test_a_run_whose_ranks_step_aside_after_each_step_has_the_same_trajectory(
    models: dict[str, Path], ranks: Ranks, layout: Layout, dtype: str, state: int
) -> None:
    algorithm = {"kl_coef": 0.1}  # with a reference model
    alone = ranks.run(models["qwen3_moe"], layout, steps=3, dtype=dtype, algorithm=algorithm)
    aside = ranks.run(models["qwen3_moe"], layout, steps=3, dtype=dtype, algorithm=algorithm, aside=True)
    for before, after in zip(alone, aside, strict=True):
        assert [(r["loss"], r["grad_norm"]) for r in after["reports"]] == [
            (r["loss"], r["grad_norm"]) for r in before["reports"]
        ]
        assert after["after"] == before["after"]
        weights, nothing, again, whole = after["held"]
        assert nothing["held"] == 0
        assert weights["held"] == again["held"] > 0
        assert nothing["offloaded"] - weights["offloaded"] == weights["held"]
        # The optimizer's state and the reference's weights, including the padding of parameters.
        assert weights["offloaded"] == pytest.approx((state + 1) * weights["held"], rel=0.1)
        assert whole["offloaded"] == 0
        assert whole["held"] > weights["held"] + weights["offloaded"]  # and gradients


def test_views_of_a_storage_that_was_away_are_what_they_were() -> None:
    whole = torch.arange(1000.0)
    part, other = whole[10:20], torch.full((7,), 3.0)
    memory = DeviceMemory(
        torch.device("cpu"), weights=lambda: [part], state=lambda: [other, whole], gradients=list
    )
    report = memory.hold("nothing")
    assert (report.held, report.offloaded) == (0, 4028)
    assert whole.untyped_storage().nbytes() == other.untyped_storage().nbytes() == 0
    memory.hold("weights")
    assert part.tolist() == list(range(10, 20))
    assert other.untyped_storage().nbytes() == 0
    memory.hold("all")
    assert other.tolist() == [3.0] * 7
    part += 1
    assert whole[9:12].tolist() == [9.0, 11.0, 12.0]
