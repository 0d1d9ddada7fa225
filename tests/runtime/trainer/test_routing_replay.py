"""The promise of routing replay: every token goes to the experts that the engine chose, in every layer, in forward
and recomputation, under every layout, and the gate still learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, EP, ONE, PP, SP, TP
from tests.runtime.trainer.tiny_models import ADVANTAGES, MOE_LAYERS, Layout, make_samples

FULL = {"recompute-granularity": "full", "recompute-method": "uniform", "recompute-num-layers": 1}
SELECTIVE = {"recompute-granularity": "selective", "recompute-modules": ["moe"]}
VPP = {"num-virtual-stages-per-pipeline-rank": 2}
LAYOUTS = {
    "full-recompute": Layout(1, FULL),
    "selective-recompute": Layout(1, SELECTIVE),
    "pp2": Layout(2, {PP: 2}),
    "pp2-full-recompute": Layout(2, {PP: 2} | FULL),
    "pp2-vpp2-full-recompute": Layout(2, {PP: 2} | VPP | FULL),
    "cp2": Layout(2, {CP: 2}),
    "cp2-full-recompute": Layout(2, {CP: 2} | FULL),
    "tp2-sp": Layout(2, {TP: 2} | SP),
    "tp2-sp-full-recompute": Layout(2, {TP: 2} | SP | FULL),
    "ep2": Layout(2, {EP: 2}),
    "tp2-ep2-etp1": Layout(2, {TP: 2, EP: 2, "expert-tensor-parallel-size": 1} | SP),
}
SHOWN = [(0, 1), (0, 4)]
REPLAY: dict[str, Any] = {"routing": True, "algorithm": {"routing_replay": True}, "shown": SHOWN}
PAIRS = (
    sum(s.length - 1 for s in make_samples(None)) * MOE_LAYERS
)  # tokens with known routing, layer by layer


@pytest.fixture(scope="session")
def replayed(models: dict[str, Path], ranks: Ranks) -> dict[str, Any]:
    return ranks.run(models["qwen3_moe"], ONE, steps=2, **REPLAY)[0]


def test_replay_counts_every_token_and_layer(replayed: dict[str, Any]) -> None:
    for report in replayed["reports"]:
        metrics = report["metrics"]
        assert metrics["routing_replayed"] == PAIRS
        assert metrics["routing_wrong"] == 0
        # Random experts: two of eight are the router's own choice for one token in 28.
        assert metrics["routing_would_differ"] > 0.8


def test_shown_samples_are_what_the_trained_pass_computed(replayed: dict[str, Any]) -> None:
    shown = {(s["group"], s["index"]): s for s in replayed["reports"][0]["shown"]}
    assert sorted(shown) == SHOWN
    for (_, index), sample in shown.items():
        original = make_samples(None, routing="qwen3_moe")[index]
        assert sample["response_ids"] == original.response_ids.tolist()
        expected = np.where(original.loss_mask, replayed["before"][index], 0)
        assert sample["trainer_logprobs"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert sample["advantage"] == ADVANTAGES[index]
        # Random experts: hardly a token that one of the layers would not have routed otherwise.
        assert np.mean(np.array(sample["routing_differs"])[original.loss_mask.astype(bool)]) > 0.8


def test_replay_changes_what_the_model_says(
    replayed: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    free = ranks.run(models["qwen3_moe"], ONE, steps=0)[0]
    assert max(abs(a - b) for a, b in zip(free["before"][4], replayed["before"][4], strict=True)) > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replay_is_exact_in_every_layout(
    layout: str, replayed: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    answers = ranks.run(models["qwen3_moe"], LAYOUTS[layout], steps=2, **REPLAY)
    recomputes = 1 if "recompute-granularity" in LAYOUTS[layout].megatron else 0
    for answer in answers:
        for mine, theirs in zip(answer["reports"], replayed["reports"], strict=True):
            assert mine["metrics"]["routing_replayed"] == PAIRS
            assert mine["metrics"]["routing_recomputed"] == PAIRS * recomputes
            assert mine["metrics"]["routing_wrong"] == 0
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    shown = {(s["group"], s["index"]): s for answer in answers for s in answer["reports"][0]["shown"]}
    assert sum(len(answer["reports"][0]["shown"]) for answer in answers) == len(SHOWN)
    for theirs in replayed["reports"][0]["shown"]:
        mine = shown[theirs["group"], theirs["index"]]
        assert mine["trainer_logprobs"] == pytest.approx(theirs["trainer_logprobs"], abs=1e-4)
        if PP not in LAYOUTS[layout].megatron:  # stages before the last have layers of their own
            assert mine["routing_differs"] == theirs["routing_differs"]
    gates = [norm for answer in answers for norm in answer["gate_gradients"]]
    assert len(gates) >= MOE_LAYERS
    assert min(gates) > 1e-4


def test_sample_without_routing_is_refused_by_name(models: dict[str, Path], ranks: Ranks) -> None:
    with pytest.raises(pytest.fail.Exception, match="sample 0 of group 0 carries no routing"):
        ranks.run(models["qwen3_moe"], ONE, routing=False, algorithm={"routing_replay": True})
