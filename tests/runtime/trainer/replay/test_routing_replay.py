"""The promise of routing replay: every token goes to the experts that the engine chose, in every layer, in
the forward pass and in recomputation, under every layout, and the gate still learns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, EP, ONE, PP, SP, TP
from tests.runtime.trainer.tiny_models import (
    ADVANTAGES,
    MOE_LAYERS,
    ROUTING,
    Layout,
    in_default,
    make_plan,
    make_samples,
    save_model,
)

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
ETP1 = {"expert-tensor-parallel-size": 1}
# Layouts that need more than two ranks, and layouts that the default tests cover for the other family only.
MORE_LAYOUTS = {
    "pp2-selective-recompute": Layout(2, {PP: 2} | SELECTIVE),
    "tp2-sp-allgather": Layout(2, {TP: 2, "moe-token-dispatcher-type": "allgather"} | SP),
    "dp2-distopt": Layout(2, {"use-distributed-optimizer": True}),
    "cp2-ep2": Layout(2, {CP: 2, EP: 2}),
    "pp2-tp2-sp": Layout(4, {PP: 2, TP: 2} | SP),
    "pp2-tp2-sp-full-recompute": Layout(4, {PP: 2, TP: 2} | SP | FULL),
    "pp2-vpp2-tp2-sp-full-recompute": Layout(4, {PP: 2, TP: 2} | VPP | SP | FULL),
    "pp2-cp2-full-recompute": Layout(4, {PP: 2, CP: 2} | FULL),
    "cp2-tp2-sp-full-recompute": Layout(4, {CP: 2, TP: 2} | SP | FULL),
    "pp2-ep2-full-recompute": Layout(4, {PP: 2, EP: 2} | FULL),
    "tp2-ep4-etp1-dp2": Layout(4, {TP: 2, EP: 4} | ETP1 | SP),
    "pp2-tp2-ep2-etp1-selective-recompute": Layout(4, {PP: 2, TP: 2, EP: 2} | ETP1 | SP | SELECTIVE),
    "pp4": Layout(4, {PP: 4}),
}
SHOWN = [(0, 1), (0, 4)]
REPLAY: dict[str, Any] = {"routing": True, "algorithm": {"routing_replay": "rollout"}, "shown": SHOWN}
TOKENS = sum(s.length - 1 for s in make_samples(None))  # tokens with known routing
PAIRS = TOKENS * MOE_LAYERS  # pairs of such a token and a layer
LAST = len(make_samples(None)) * MOE_LAYERS  # pairs of a last token, whose routing is not known, and a layer


def _first_by_default(*layouts: str) -> list[Any]:
    """Runs the first layout in every test run, and the others in long ones only."""
    return [pytest.param(name, marks=[pytest.mark.long] if i else []) for i, name in enumerate(layouts)]


@pytest.fixture(scope="session")
def replayed_of(models: dict[str, Path], ranks: Ranks) -> Callable[[str], dict[str, Any]]:
    """A single rank's answer after two steps, by family."""
    return functools.cache(lambda family: ranks.run(models[family], ONE, steps=2, **REPLAY)[0])


@pytest.fixture(scope="session")
def replayed(replayed_of: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return replayed_of("qwen3_moe")


def test_replay_counts_every_token_and_layer(replayed: dict[str, Any]) -> None:
    for report in replayed["reports"]:
        metrics = report["metrics"]
        assert metrics["routing_replayed"] == PAIRS
        assert metrics["routing_wrong"] == 0
        # Random experts: of all pairs of eight experts, one in 28 is the router's own choice.
        assert metrics["routing_would_differ"] > 0.8


def test_shown_samples_are_what_the_trained_pass_computed(replayed: dict[str, Any]) -> None:
    shown = {(s["group"], s["index"]): s for s in replayed["reports"][0]["shown"]}
    assert sorted(shown) == SHOWN
    for (_, index), sample in shown.items():
        original = make_samples(None, routing="qwen3_moe")[index]
        assert sample["response_ids"] == original.response_ids.tolist()
        expected = np.where(original.loss_mask, replayed["before"][index], 0)
        assert sample["trainer_logprobs"] == pytest.approx(expected.tolist(), abs=1e-5)
        own = original.weight_versions == 0  # of the weights that the step trained
        old = np.where(original.loss_mask, np.where(own, expected, original.logprobs), 0)
        assert sample["old_logprobs"] == pytest.approx(old.tolist(), abs=1e-5)
        assert sample["reference_logprobs"] is None
        assert sample["advantage"] == ADVANTAGES[index]
        # Random experts: for almost every token at least one layer would choose others.
        assert np.mean(np.array(sample["routing_differs"])[original.loss_mask.astype(bool)]) > 0.8


def test_replay_changes_what_the_model_says(
    replayed: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    free = ranks.run(models["qwen3_moe"], ONE, steps=0)[0]
    assert max(abs(a - b) for a, b in zip(free["before"][4], replayed["before"][4], strict=True)) > 0.01


@pytest.mark.parametrize(
    "layout",  # the others are in the whole matrix below
    in_default(["cp2-full-recompute", "pp2-vpp2-full-recompute", "tp2-ep2-etp1"], "tp2-ep2-etp1"),
)
def test_replay_is_exact_in_every_layout(
    layout: str, replayed: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    layout_ = LAYOUTS[layout]
    _assert_exact(layout_, ranks.run(models["qwen3_moe"], layout_, steps=2, **REPLAY), replayed)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["pp2-vpp2-full-recompute"])
def test_replay_is_exact_behind_a_corrected_router_of_groups(
    layout: str,
    replayed_of: Callable[[str], dict[str, Any]],
    models: dict[str, Path],
    ranks: Ranks,
) -> None:
    layout_ = LAYOUTS[layout]
    answers = ranks.run(models["deepseek_v3"], layout_, steps=2, **REPLAY)
    _assert_exact(layout_, answers, replayed_of("deepseek_v3"))


@pytest.mark.long
def test_replay_is_exact_with_a_dense_layer_between_others(tmp_path: Path, ranks: Ranks) -> None:
    """Of four chunks with one layer each, the third has no router. So the stages have one router and two."""
    folder = tmp_path / "qwen3_moe"
    save_model("qwen3_moe", folder, dense=2)
    one = ranks.run(folder, ONE, steps=2, **REPLAY)[0]
    layout = LAYOUTS["pp2-vpp2-full-recompute"]
    _assert_exact(layout, ranks.run(folder, layout, steps=2, **REPLAY), one)


def _whole_matrix() -> list[tuple[str, str]]:
    """All families and layouts, except GLM-5 with chunks of one layer: its layers share choices in pairs."""
    apart = [
        n for n, layout in (LAYOUTS | MORE_LAYOUTS).items() if "vpp2" in n or layout.megatron.get(PP) == 4
    ]
    every = itertools.product(ROUTING, LAYOUTS | MORE_LAYOUTS)
    return [(family, name) for family, name in every if family != "glm_moe_dsa" or name not in apart]


@pytest.mark.long
@pytest.mark.parametrize(("family", "layout"), _whole_matrix())
def test_replay_is_exact_in_the_whole_matrix(
    family: str,
    layout: str,
    replayed_of: Callable[[str], dict[str, Any]],
    models: dict[str, Path],
    ranks: Ranks,
) -> None:
    layout_ = (LAYOUTS | MORE_LAYOUTS)[layout]
    answers = ranks.run(models[family], layout_, steps=2, **REPLAY)
    _assert_exact(layout_, answers, replayed_of(family))


def _assert_exact(layout: Layout, answers: list[dict[str, Any]], one: dict[str, Any]) -> None:
    recomputes = 1 if "recompute-granularity" in layout.megatron else 0
    for answer in answers:
        for mine, theirs in zip(answer["reports"], one["reports"], strict=True):
            assert mine["metrics"]["routing_replayed"] == PAIRS
            assert mine["metrics"]["routing_recomputed"] == PAIRS * recomputes
            assert mine["metrics"]["routing_wrong"] == 0
            assert mine["metrics"]["routing_free"] == LAST
            for name in ("routing_would_differ", "routing_tokens_differ"):
                assert mine["metrics"][name] == pytest.approx(theirs["metrics"][name], abs=0.02)
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    shown = {(s["group"], s["index"]): s for answer in answers for s in answer["reports"][0]["shown"]}
    assert sum(len(answer["reports"][0]["shown"]) for answer in answers) == len(SHOWN)
    for theirs in one["reports"][0]["shown"]:
        mine = shown[theirs["group"], theirs["index"]]
        assert mine["trainer_logprobs"] == pytest.approx(theirs["trainer_logprobs"], abs=1e-4)
        if PP not in layout.megatron:  # only the last stage's layers are compared
            assert mine["routing_differs"] == theirs["routing_differs"]
    # No rank gets another's routing: over all ranks each entry arrives once, as narrow as in the journal.
    entry = one["routing_bytes"] // PAIRS
    received = [answer["routing_bytes"] for answer in answers]
    copies = layout.megatron.get(TP, 1) if "sequence-parallel" not in layout.megatron else 1
    assert sum(received) == PAIRS * entry * copies
    assert max(received) < 0.8 * PAIRS * entry or layout.world_size == 1
    gates = [norm for answer in answers for norm in answer["gate_gradients"]]
    assert len(gates) >= MOE_LAYERS
    assert min(gates) > 1e-4


def test_what_the_engine_does_not_know_is_routed_freely_and_counted(
    models: dict[str, Path], ranks: Ranks
) -> None:
    some = ranks.run(models["qwen3_moe"], Layout(1, FULL), steps=1, **REPLAY, unknown=0.3)[0]
    metrics = some["reports"][0]["metrics"]
    assert 0.15 * PAIRS < metrics["routing_free"] - LAST < 0.45 * PAIRS
    assert metrics["routing_replayed"] + metrics["routing_free"] == PAIRS + LAST
    assert metrics["routing_recomputed"] == metrics["routing_replayed"]
    assert metrics["routing_wrong"] == 0
    # If nothing is known, the result is the same as without replay.
    none = ranks.run(models["qwen3_moe"], Layout(1, FULL), steps=2, **REPLAY, unknown=1.1)[0]
    off = ranks.run(models["qwen3_moe"], ONE, steps=2, shown=SHOWN)[0]
    for mine, theirs in zip(none["reports"], off["reports"], strict=True):
        assert mine["metrics"]["routing_replayed"] == 0
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.parametrize("layout", _first_by_default("full-recompute", "pp2-vpp2-full-recompute", "tp2-sp"))
def test_the_trainers_own_routing_is_replayed(layout: str, models: dict[str, Path], ranks: Ranks) -> None:
    """R2: every token goes to the experts of a pass before the step.

    So a run with one update a step trains as without replay.
    """
    answers = ranks.run(
        models["qwen3_moe"],
        LAYOUTS[layout],
        steps=2,
        algorithm={"routing_replay": "trainer"},
    )
    off = ranks.run(models["qwen3_moe"], ONE, steps=2)[0]
    for answer in answers:
        for mine, theirs in zip(answer["reports"], off["reports"], strict=True):
            assert mine["metrics"]["routing_replayed"] == PAIRS + LAST
            assert mine["metrics"]["routing_wrong"] == mine["metrics"]["routing_would_differ"] == 0
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_the_reference_model_routes_for_itself(models: dict[str, Path], ranks: Ranks) -> None:
    """Before the first update its weights are the policy's, so only its routing can make them differ."""
    with_kl = {"routing_replay": "rollout", "kl_coef": 0.1}
    answer = ranks.run(models["qwen3_moe"], ONE, steps=1, routing=True, algorithm=with_kl)[0]
    off = ranks.run(models["qwen3_moe"], ONE, steps=1, algorithm={"kl_coef": 0.1})[0]
    assert answer["reports"][0]["metrics"]["kl_reference_k3"] > 1e-3
    assert off["reports"][0]["metrics"]["kl_reference_k3"] == pytest.approx(0, abs=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["pp2-vpp2-full-recompute", "full-recompute", "cp2", "ep2"])
def test_a_micro_batch_of_each_step_is_measured_without_replay(
    layout: str, replayed: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    """The probe's figures equal those of whole runs with and without replay, over the probed micro-batch."""
    answer = ranks.run(models["qwen3_moe"], LAYOUTS[layout], steps=1, **REPLAY)[0]
    free = ranks.run(models["qwen3_moe"], ONE, steps=0)[0]["before"]
    metrics = answer["reports"][0]["metrics"]
    samples = make_samples(models["qwen3_moe"])
    probed = _probed(LAYOUTS[layout])
    for name, logprobs in (("free", free), ("replayed", replayed["before"])):
        differences = np.concatenate(
            [(np.array(logprobs[i]) - samples[i].logprobs)[samples[i].loss_mask.astype(bool)] for i in probed]
        )
        k3 = np.expm1(differences) - differences
        assert metrics[f"routing_probe_kl_{name}"] == pytest.approx(k3.mean(), rel=1e-3)
        largest = np.exp(np.abs(differences).max())
        assert metrics[f"routing_probe_ratio_{name}"] == pytest.approx(largest, rel=1e-3)


def _probed(layout: Layout) -> list[int]:
    """Returns the samples of each replica's first micro-batch.

    An interleaved pipeline probes as many micro-batches as it has stages.
    """
    count = 2 if "num-virtual-stages-per-pipeline-rank" in layout.megatron else 1
    plan = make_plan(make_samples(None), layout.dp_size)
    return [ref.index for rank in plan.microbatches for micro in rank[:count] for ref in micro.samples]


def test_sample_without_routing_is_refused_by_name(models: dict[str, Path], ranks: Ranks) -> None:
    with pytest.raises(
        pytest.fail.Exception,
        match=r"sample 0 of group 0 carries no routing, and algorithm\.routing_replay is rollout",
    ):
        ranks.run(models["qwen3_moe"], ONE, routing=False, algorithm={"routing_replay": True})
