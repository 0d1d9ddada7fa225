"""Balancing losses of a mixture of experts: over the real tokens of each micro-batch, whatever the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, EP, ONE, PP, SP, TP
from tests.runtime.trainer.tiny_models import (
    ADVANTAGES,
    ROUTING,
    Layout,
    in_default,
    make_plan,
    make_samples,
    temperature_of,
)

BALANCED = {
    "moe-router-load-balancing-type": "aux_loss",
    "moe-aux-loss-coeff": 1.0,
    "moe-z-loss-coeff": 0.1,
}
FULL = {"recompute-granularity": "full", "recompute-method": "uniform", "recompute-num-layers": 1}
LAYOUTS = {
    "one": Layout(1, BALANCED),
    "cp2": Layout(2, BALANCED | {CP: 2}),  # ranks that share sequences have unequally many real tokens
    "tp2-sp": Layout(2, BALANCED | {TP: 2} | SP),
    "ep2": Layout(2, BALANCED | {EP: 2}),  # one rank has micro-batches without samples
    "pp2-vpp2-recompute": Layout(2, BALANCED | FULL | {PP: 2, "num-virtual-stages-per-pipeline-rank": 2}),
    "pp2-tp2-sp": Layout(4, BALANCED | {PP: 2, TP: 2} | SP),
}


@pytest.mark.parametrize("layout", in_default(LAYOUTS, "ep2"))
def test_a_balanced_step_equals_autograd_on_transformers_without_padding(
    layout: str, models: dict[str, Path], ranks: Ranks
) -> None:
    report = ranks.run(models["qwen3_moe"], LAYOUTS[layout])[0]["reports"][0]
    norm = _transformers_norm(models["qwen3_moe"], LAYOUTS[layout].dp_size, BALANCED)
    free = _transformers_norm(models["qwen3_moe"], LAYOUTS[layout].dp_size, {})
    assert norm != pytest.approx(free, rel=0.05)
    assert report["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.long
def test_a_router_with_a_bias_is_balanced_too(models: dict[str, Path], ranks: Ranks) -> None:
    one, two, free = (
        ranks.run(models["deepseek_v3"], layout)[0]["reports"][0]["grad_norm"]
        for layout in (LAYOUTS["one"], LAYOUTS["cp2"], ONE)
    )
    assert two == pytest.approx(one, rel=1e-4)
    assert free != pytest.approx(one, rel=1e-3)


def _transformers_norm(folder: Path, dp_size: int, balanced: dict[str, Any]) -> float:
    """Returns the gradient norm of a step on the plan's micro-batches, one sample after another."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples = make_samples(folder)
    experts, topk = ROUTING[folder.name]
    trained, tokens = sum(int(s.loss_mask.sum()) for s in samples), sum(s.length for s in samples)
    total = torch.zeros(())
    for micro in (micro for rank in make_plan(samples, dp_size).microbatches for micro in rank):
        routed: list[list[Any]] = [[], [], []]
        for ref in micro.samples:
            sample = samples[ref.index]
            ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
            output = model(ids[None], output_router_logits=True)
            for layer, logits_tE in enumerate(output.router_logits):
                routed[layer].append(logits_tE)
            start = len(sample.prompt_ids)
            temperature = torch.from_numpy(temperature_of(sample))[:, None]
            logp = (output.logits[0, start - 1 : -1] / temperature).log_softmax(-1)
            logp = logp.gather(1, ids[start:, None])[:, 0]
            total = (
                total - (torch.from_numpy(sample.loss_mask) * logp).sum() * ADVANTAGES[ref.index] / trained
            )
        for logits_tE in (torch.cat(layer) for layer in routed if layer):
            t = len(logits_tE)
            counts_E = torch.zeros(t, experts).scatter(1, logits_tE.topk(topk).indices, 1.0).sum(0)
            load = experts / (topk * t * t) * (counts_E * logits_tE.softmax(-1).sum(0)).sum()
            z = logits_tE.logsumexp(-1).square().mean()
            loss = balanced.get("moe-aux-loss-coeff", 0) * load + balanced.get("moe-z-loss-coeff", 0) * z
            total = total + loss * t / tokens
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in gradients])).item()
