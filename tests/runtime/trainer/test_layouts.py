"""The promise: training does not depend on how the model is spread over ranks.

Log-probabilities equal those of transformers at each token's temperature. A step's loss, its gradient norm
and the resulting model are the same in every layout, with sequences of uneven lengths, unevenly spread, and
with an empty micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.tiny_models import (
    ADVANTAGES,
    FAMILIES,
    LENGTHS,
    Layout,
    in_default,
    make_samples,
    temperature_of,
    transformers_logprobs,
)

TP, PP, CP, EP = (
    f"{axis}-parallel-size" for axis in ("tensor-model", "pipeline-model", "context", "expert-model")
)
SP = {"sequence-parallel": True}
ONE = Layout(1, {})
DENSE = {
    "tp2": Layout(2, {TP: 2}),
    "tp2-sp": Layout(2, {TP: 2} | SP),
    "pp2": Layout(2, {PP: 2}),
    "pp2-vpp2": Layout(2, {PP: 2, "num-virtual-stages-per-pipeline-rank": 2}),
    "pp2-uneven": Layout(2, {PP: 2, "decoder-first-pipeline-num-layers": 1}),
    "cp2": Layout(2, {CP: 2}),
    "dp2": Layout(2, {}),
    "dp2-distopt": Layout(2, {"use-distributed-optimizer": True}),
    "dp2-overlap": Layout(2, {"use-distributed-optimizer": True, "overlap-grad-reduce": True}),
    "recompute": Layout(
        1, {"recompute-granularity": "full", "recompute-method": "uniform", "recompute-num-layers": 1}
    ),
}
MOE = {
    "tp2-sp": Layout(2, {TP: 2} | SP),
    "pp2": Layout(2, {PP: 2}),
    "pp2-vpp2": Layout(2, {PP: 2, "num-virtual-stages-per-pipeline-rank": 2}),
    "cp2": Layout(2, {CP: 2}),
    "dp2-distopt": Layout(2, {"use-distributed-optimizer": True}),
    "ep2": Layout(2, {EP: 2}),
    "ep2-distopt": Layout(2, {EP: 2, "use-distributed-optimizer": True}),
    "tp2-ep2-etp1": Layout(2, {TP: 2, EP: 2, "expert-tensor-parallel-size": 1} | SP),
    "cp2-ep2": Layout(2, {CP: 2, EP: 2}),
}
# Every part that a loss can have: ratios other than one, clipping, KL to the reference, entropy.
FULL_LOSS = {
    "algorithm": {"kl_coef": 0.1, "entropy_coef": 0.02, "clip_low": 0.1, "clip_high": 0.2},
    "trainer": {"old_logprobs": "rollout"},
}


@pytest.fixture(scope="session")
def single(models: dict[str, Path], ranks: Ranks) -> dict[str, dict[str, Any]]:
    """One rank's answer after two steps, by family."""
    return {f: ranks.run(models[f], ONE, steps=2, **FULL_LOSS)[0] for f in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_transformers(family: str, single: dict[str, Any], models: dict[str, Path]) -> None:
    expected = transformers_logprobs(models[family], make_samples(None))
    for mine, theirs in zip(single[family]["before"], expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_step_equals_autograd_on_transformers(
    family: str, single: dict[str, Any], models: dict[str, Path]
) -> None:
    loss, norm = _transformers_step(models[family])
    report = single[family]["reports"][0]
    assert report["loss"] == pytest.approx(loss, rel=1e-5)
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert 0 < report["metrics"]["clip_fraction"] < 1
    assert report["tokens"] == sum(s.length for s in make_samples(None))
    assert report["metrics"]["trained_tokens"] == sum(s.loss_mask.sum() for s in make_samples(None))


@pytest.mark.parametrize("family", in_default(FAMILIES, "glm_moe_dsa"))
def test_a_sample_is_the_same_in_a_packed_row_and_alone(
    family: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """Log-probabilities, loss and every gradient: no token sees another sequence, or counts from its start."""
    everyone = range(len(LENGTHS))
    packed, alone = (
        ranks.run(models[family], ONE, split=split, gradient=True, trainer=budget | FULL_LOSS["trainer"],
                  algorithm=FULL_LOSS["algorithm"])[0]
        for split, budget in (
            ([[[*everyone]]], {"max_tokens_per_microbatch": 64}),
            ([[[i] for i in everyone]], {"max_tokens_per_microbatch": 1}),
        )
    )  # fmt: skip
    for mine, theirs in zip(packed["before"], alone["before"], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    assert packed["reports"][0]["loss"] == pytest.approx(alone["reports"][0]["loss"], rel=1e-6)
    difference = np.linalg.norm(packed["gradient"] - alone["gradient"])
    assert difference < 2e-6 * np.linalg.norm(alone["gradient"])  # what float32 rounds


def _transformers_step(folder: Path) -> tuple[float, float]:
    """Returns loss and gradient norm of the same step, written out for the whole batch.

    Before the first update the KL to the reference and its gradient are zero.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples = make_samples(folder)
    total, trained = torch.zeros(()), sum(int(s.loss_mask.sum()) for s in samples)
    for sample, advantage in zip(samples, ADVANTAGES, strict=True):
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        start = len(sample.prompt_ids)
        temperature = torch.from_numpy(temperature_of(sample))[:, None]
        whole = (model(tokens[None]).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
        logp = whole.gather(1, tokens[start:, None])[:, 0]
        ratio = torch.exp(logp - torch.from_numpy(sample.logprobs))
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage)
        entropy = -(whole.exp() * whole).sum(-1)
        total = total + (torch.from_numpy(sample.loss_mask) * (-surrogate - 0.02 * entropy)).sum() / trained
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return total.item(), torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in gradients])).item()


@pytest.mark.parametrize("layout", in_default(DENSE, "cp2"))
def test_dense_step_is_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    # Llama's embedding is tied to its output layer, so two pipeline stages hold it.
    _assert_same(single["llama"], ranks.run(models["llama"], DENSE[layout], steps=2, **FULL_LOSS))


@pytest.mark.parametrize("layout", in_default(["tp2-sp", "cp2"]))
def test_query_and_key_norms_are_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    _assert_same(single["qwen3"], ranks.run(models["qwen3"], DENSE[layout], steps=2, **FULL_LOSS))


@pytest.mark.parametrize("layout", in_default(MOE, "tp2-ep2-etp1"))
def test_mixture_of_experts_step_is_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    _assert_same(single["qwen3_moe"], ranks.run(models["qwen3_moe"], MOE[layout], steps=2, **FULL_LOSS))


@pytest.mark.parametrize("layout", in_default(MOE))
def test_latent_attention_and_grouped_routing_are_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    """DeepSeek-V3 also has a bias in the router, a shared expert and a dense first layer."""
    _assert_same(single["deepseek_v3"], ranks.run(models["deepseek_v3"], MOE[layout], steps=2, **FULL_LOSS))


@pytest.mark.long
@pytest.mark.parametrize(
    "layout", [Layout(2, {TP: 2} | SP), Layout(2, {PP: 2}), Layout(2, {CP: 2})], ids=["tp2-sp", "pp2", "cp2"]
)
@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
def test_sparse_attention_is_the_same_in_every_layout(
    family: str, layout: Layout, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    """Indexers choose as in transformers' model; in GLM-5.2 some layers share their choice."""
    _assert_same(single[family], ranks.run(models[family], layout, steps=2, **FULL_LOSS))


@pytest.mark.parametrize("layout", in_default(["recompute", "pp2-recompute"]))
def test_a_shared_choice_is_the_same_when_recomputed(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    """With several micro-batches in flight, a layer recomputes with the choice of its own micro-batch."""
    sizes = DENSE["recompute"].megatron | ({PP: 2} if "pp2" in layout else {})
    layout_ = Layout(2 if "pp2" in layout else 1, sizes)
    _assert_same(single["glm_moe_dsa"], ranks.run(models["glm_moe_dsa"], layout_, steps=2, **FULL_LOSS))


def _assert_same(one: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    for answer in answers:
        assert answer["parameters"] == one["parameters"]
        for mine, theirs in zip(answer["reports"], one["reports"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
            assert mine["tokens"] == theirs["tokens"]
            assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-3, abs=1e-6)
    found = [answer for answer in answers if answer["after"] is not None]
    assert found
    for answer in found:
        for when, tolerance in (("before", 1e-5), ("after", 1e-3)):
            for mine, theirs in zip(answer[when], one[when], strict=True):
                np.testing.assert_allclose(mine, theirs, atol=tolerance)
