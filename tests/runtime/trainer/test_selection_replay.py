"""The promise of replay for sparse attention: every token attends to what the engine's indexers chose, in every layer,
in forward and recomputation, under every layout. Here the choices, of tokens and of experts, are random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, ONE, PP, SP, TP
from tests.runtime.trainer.test_routing_replay import FULL, REPLAY
from tests.runtime.trainer.tiny_models import LAYERS, LENGTHS, ROUTING, Layout, make_samples, random_choices
from verst.sync import routing

FAMILY = "deepseek_v32"
LAYOUTS = {
    "full-recompute": Layout(1, FULL),
    "tp2-sp-full-recompute": Layout(2, {TP: 2} | SP | FULL),
    "pp2-full-recompute": Layout(2, {PP: 2} | FULL),
    "cp2": Layout(2, {CP: 2}),
    "dp2": Layout(2, {}),
}


@pytest.fixture(scope="module")
def one(models: dict[str, Path], ranks: Ranks) -> dict[str, Any]:
    """What a single rank makes of two steps."""
    return ranks.run(models[FAMILY], ONE, steps=2, **REPLAY)[0]


def told_logprobs(folder: Path) -> list[np.ndarray]:
    """Of each response under transformers' model that is told experts and attended tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = []
    for index, sample in enumerate(make_samples(None, FAMILY)):
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        choices = random_choices(len(ids) - 1, index)
        assert sample.routing is not None
        experts = routing.unpack(sample.routing, *ROUTING[FAMILY])
        for n, layer in enumerate(model.model.layers):
            # Transformers marks what is chosen: a token's first choice, itself or an earlier one, twice is once.
            own = torch.from_numpy(np.where(choices[:, n] < 0, choices[:, n, :1], choices[:, n]))
            layer.self_attn.indexer.forward = lambda *_, own=own, **__: own[None]
            if n:
                mine = torch.from_numpy(experts[:, n - 1].astype(np.int64))
                layer.mlp.route_tokens_to_experts = lambda logits, mine=mine: _weighted(model, logits, mine)
        with torch.no_grad():
            logprobs = model(ids[None, :-1], use_cache=False).logits[0].log_softmax(-1)
        start = len(sample.prompt_ids)
        found.append(logprobs[start - 1 :].gather(1, ids[start:, None])[:, 0].numpy())
    return found


def _weighted(model: Any, logits: Any, experts: Any) -> tuple[Any, Any]:
    weights = logits.sigmoid().gather(1, experts)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * model.config.routed_scaling_factor


def test_logprobs_equal_transformers_told_the_same(one: dict[str, Any], models: dict[str, Path]) -> None:
    for mine, theirs in zip(one["before"], told_logprobs(models[FAMILY]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_replay_changes_what_the_model_says(
    one: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    free = ranks.run(models[FAMILY], ONE, steps=0)[0]
    assert np.abs(np.array(free["before"][4]) - one["before"][4]).max() > 0.01


def test_every_token_of_every_layer_is_counted(one: dict[str, Any]) -> None:
    metrics = one["reports"][0]["metrics"]
    # Micro-batches of samples 0 and 1; 2, 3 and 4; 5; none, of width 4. Padding attends too.
    assert metrics["selection_replayed"] == LAYERS * (2 * 11 + 3 * 15 + 9 + 4)
    assert metrics["selection_recomputed"] == 0
    assert metrics["routing_wrong"] == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_replay_is_exact_in_every_layout(
    layout: str, one: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    answers = ranks.run(models[FAMILY], LAYOUTS[layout], steps=2, **REPLAY)
    for answer in answers:
        for mine, alone in zip(answer["reports"], one["reports"], strict=True):
            assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
            metrics = mine["metrics"]
            assert metrics["selection_replayed"] > 0
            recomputes = "recompute" in layout
            assert metrics["selection_recomputed"] == metrics["selection_replayed"] * recomputes
    found = [answer for answer in answers if answer["after"] is not None]
    assert found
    for answer in found:
        for when, tolerance in (("before", 1e-5), ("after", 1e-3)):
            for mine, alone in zip(answer[when], one[when], strict=True):
                np.testing.assert_allclose(mine, alone, atol=tolerance)


def test_each_stage_gets_the_bytes_of_its_layers_and_each_part_those_of_its_tokens(
    one: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    whole = sum(s.selected.size for s in make_samples(None, FAMILY))
    assert one["selected_bytes"] == whole
    for layout in ("pp2-full-recompute", "cp2"):
        parts = [a["selected_bytes"] for a in ranks.run(models[FAMILY], LAYOUTS[layout], **REPLAY)]
        assert sum(parts) == whole
        assert all(0 < part < whole for part in parts)


def test_the_trainers_own_choices_are_replayed_too(models: dict[str, Path], ranks: Ranks) -> None:
    """R2 with one update a step trains what no replay trains."""
    own = ranks.run(models[FAMILY], ONE, steps=2, algorithm={"routing_replay": "trainer"})[0]
    free = ranks.run(models[FAMILY], ONE, steps=2)[0]
    for mine, theirs in zip(own["reports"], free["reports"], strict=True):
        assert mine["metrics"]["selection_replayed"] > 0
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-6)


def test_samples_without_choices_are_refused() -> None:
    from verst.runtime.trainer.selection_share import SelectionShare

    share = SelectionShare((0, 1), LAYERS, 5)
    with pytest.raises(ValueError, match="sample 2 of group 0 carries no choices of sparse attention"):
        share.require([make_samples(None)[2]])
    with pytest.raises(
        ValueError, match=rf"carries choices of \({LAYERS}, \d+\) layers and bytes; its model's"
    ):
        SelectionShare((0, 1), LAYERS, 4).require([make_samples(None, FAMILY)[4]])
    assert LENGTHS[4] == (6, 9)
