"""For each family a real server agrees with transformers, at first and after new weights."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.engine import Engine, Generation

# Each family has a server of its own, which takes half a minute to start.
FAMILIES = [*(pytest.param(dense, marks=pytest.mark.long) for dense in ("llama", "qwen3")), "qwen3_moe"]
PROMPT = [5, 9, 17, 30, 8, 8, 21]
TEMPERATURES = [
    0.0,
    0.3,
    0.7,
    1.0,
    1.3,
]  # the trainer agrees at the same ones: tests/runtime/trainer/test_layouts.py


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """As a trainer sends them: Hugging Face names, one tensor per expert, nothing that is tied."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith("mlp.experts.gate_up_proj"):
            base, half = name.removesuffix("gate_up_proj"), tensor.shape[1] // 2
            for expert, both in enumerate(tensor):
                weights[f"{base}{expert}.gate_proj.weight"] = both[:half].clone()
                weights[f"{base}{expert}.up_proj.weight"] = both[half:].clone()
        elif name.endswith("mlp.experts.down_proj"):
            base = name.removesuffix("down_proj")
            weights |= {f"{base}{expert}.down_proj.weight": t.clone() for expert, t in enumerate(tensor)}
        else:
            weights[name] = tensor.clone()
    return weights


def expected_logprobs(model: Any, generation: Generation, temperature: float) -> np.ndarray:
    ids = torch.tensor([[*PROMPT, *generation.ids.tolist()]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(PROMPT) - 1 : -1]
    logprobs = (logits / temperature).log_softmax(-1)
    return logprobs.gather(-1, ids[0, len(PROMPT) :, None])[:, 0].numpy()


def assert_agrees(engine: Engine, model: Any, run: Any, temperature: float, seed: int) -> Generation:
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=48)
    generation = run(engine.generate(PROMPT, sampling, seed))
    expected = expected_logprobs(model, generation, temperature or 1.0)
    np.testing.assert_allclose(generation.logprobs, expected, atol=1e-4)
    assert (generation.weight_versions == engine.version).all()
    assert len(generation.weight_versions) == len(generation.ids)
    return generation


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_transformers(family: str, engine_of: Any, run: Any) -> None:
    engine, model = engine_of(family), tiny_models.build(family)
    for seed, temperature in enumerate(TEMPERATURES):
        assert_agrees(engine, model, run, temperature, seed)


def test_routed_experts_equal_the_routers_of_transformers(engine_of: Any, run: Any) -> None:
    engine, model = engine_of("qwen3_moe"), tiny_models.build("qwen3_moe")
    for seed in range(4):
        generation = run(engine.generate(PROMPT, SamplingConfig(max_new_tokens=64), seed))
        tokens = len(PROMPT) + len(generation.ids) - 1
        assert generation.routing.dtype == np.uint8
        assert generation.routing.shape == (tokens, 3, 2)
        ids = torch.tensor([[*PROMPT, *generation.ids.tolist()]])
        with torch.no_grad():
            logits = model(ids, output_router_logits=True).router_logits
        for layer, layer_logits in enumerate(logits):
            expected = layer_logits.topk(2, dim=-1).indices[:tokens].sort(-1).values
            np.testing.assert_array_equal(np.sort(generation.routing[:, layer], -1), expected.numpy())


def chosen_experts(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """The experts [tokens, K] that transformers' DeepSeek-V3 chooses in each layer that routes."""
    gates = {layer.mlp.gate: layer.mlp for layer in model.model.layers[1:]}
    chosen: list[torch.Tensor] = []

    def see(gate: Any, inputs: Any, logits: torch.Tensor) -> None:
        chosen.append(gates[gate].route_tokens_to_experts(logits)[0])

    hooks = [gate.register_forward_hook(see) for gate in gates]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return chosen


@pytest.mark.long  # a server of its own
def test_deepseek_v3_and_its_routing_equal_transformers(engine_of: Any, run: Any) -> None:
    """Latent attention; groups, a bias per expert and a dense layer first: of the routing only layers that route."""
    engine, model = engine_of("deepseek_v3"), tiny_models.build("deepseek_v3")
    for seed, temperature in enumerate(TEMPERATURES):
        generation = assert_agrees(engine, model, run, temperature, seed)
        ids = torch.tensor([[*PROMPT, *generation.ids.tolist()]])
        assert generation.routing.shape == (ids.shape[1] - 1, 2, 4)
        for layer, experts in enumerate(chosen_experts(model, ids)):
            expected = experts[:-1].sort(-1).values
            np.testing.assert_array_equal(np.sort(generation.routing[:, layer], -1), expected.numpy())


@pytest.mark.parametrize("mode", ["in_place", pytest.param("retract", marks=pytest.mark.long)])
def test_tokens_keep_the_routing_of_the_weights_that_generated_them(
    mode: str, engine_of: Any, run: Any
) -> None:
    """Weights change under requests in flight: what the old ones chose comes back, though a retracted request is
    computed anew by the new ones."""
    engine, old = engine_of("qwen3_moe"), tiny_models.build("qwen3_moe")

    async def change(before: int, wait_s: float) -> list[Generation]:
        source = await WeightSource.connect(engine)
        long = SamplingConfig(max_new_tokens=300)
        requests = [asyncio.create_task(engine.generate(PROMPT, long, seed)) for seed in range(4)]
        await asyncio.sleep(wait_s)
        for version, model in ((before + 1, tiny_models.build("qwen3_moe", 3)), (before + 2, old)):
            await engine.pause(mode)
            await source.send(weights_of(model), version)
            await engine.resume()
            answers = await asyncio.gather(*requests)
        await source.close()
        return answers

    mixed: list[Generation] = []
    for wait_s in (0.4, 1.5, 5.0):  # a busy machine may not have begun
        before = engine.version
        mixed = [g for g in run(change(before, wait_s)) if len(set(g.weight_versions.tolist())) == 2]
        if mixed:
            break
    assert mixed, "no request was in flight during the change"
    for generation in mixed:
        # The last token of the old weights was routed by the new ones.
        tokens = len(PROMPT) + int((generation.weight_versions == before).sum()) - 1
        ids = torch.tensor([[*PROMPT, *generation.ids.tolist()]])[:, :tokens]
        with torch.no_grad():
            logits = old(ids, output_router_logits=True).router_logits
        for layer, layer_logits in enumerate(logits):
            expected = layer_logits.topk(2, dim=-1).indices.sort(-1).values
            np.testing.assert_array_equal(np.sort(generation.routing[:tokens, layer], -1), expected.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_new_weights_arrive_whole_and_are_used(family: str, engine_of: Any, run: Any) -> None:
    """Three versions over gloo; after each the answers follow, and every element compares equal."""
    engine = engine_of(family)
    source = run(WeightSource.connect(engine))
    try:
        # The first answer also fills the prefix cache that the later versions must not use.
        assert_agrees(engine, tiny_models.build(family), run, 1.0, seed=7)
        for seed in (1, 2, 0):  # ends as it began
            model, version = tiny_models.build(family, seed), engine.version + 1
            weights = weights_of(model)
            run(engine.pause("in_place"))
            run(source.send(weights, version))
            run(engine.resume())
            assert engine.version == version
            assert_agrees(engine, model, run, 1.0, seed=7)
            reports = run(source.compare(weights, version))
            assert all(report.equal for report in reports), reports
            assert sum(report.tensors for report in reports) == len(weights)
            assert sum(report.elements for report in reports) >= sum(t.numel() for t in weights.values())
        again = assert_agrees(engine, model, run, 1.0, seed=7)
        assert again.cached_tokens == len(PROMPT) - 1, "the prefix cache is in use"
    finally:
        run(source.close())


@pytest.mark.parametrize("family", FAMILIES)
def test_comparison_names_a_planted_difference_and_changes_nothing(
    family: str, engine_of: Any, run: Any
) -> None:
    engine = engine_of(family)
    model = tiny_models.build(family)
    weights = weights_of(model)
    planted = "model.layers.1.self_attn.k_proj.weight"
    weights[planted][3, 5] = torch.nextafter(weights[planted][3, 5], torch.tensor(torch.inf))
    left_out = "model.layers.1.mlp.experts.6.up_proj.weight" if family == "qwen3_moe" else "model.norm.weight"
    weights.pop(left_out)
    source = run(WeightSource.connect(engine))
    try:
        reports = run(source.compare(weights, engine.version))
        assert [name for report in reports for name in report.unequal] == [f"{planted}: 1 elements"]
        assert reports[-1].uncovered_parameters == 1
        where = (
            "model.layers.1.mlp.experts.w13_weight: 2048 of"
            if family == "qwen3_moe"
            else "model.norm.weight: 64"
        )
        assert reports[-1].uncovered[0].startswith(where)
        assert not reports[-1].equal
    finally:
        run(source.close())
    assert_agrees(engine, model, run, 1.0, seed=7)
