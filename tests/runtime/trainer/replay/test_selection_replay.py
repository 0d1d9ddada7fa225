"""The promise of replay for sparse attention: every token attends to the tokens that the engine's indexers
chose, in every layer, in the forward pass and in recomputation, under every layout.

In these tests the choices of tokens and of experts are random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.replay.test_routing_replay import FULL, REPLAY
from tests.runtime.trainer.test_layouts import CP, ONE, PP, SP, TP
from tests.runtime.trainer.tiny_models import (
    LAYERS,
    LENGTHS,
    ROUTING,
    SELECTED,
    SOURCES,
    Layout,
    in_default,
    make_samples,
    random_choices,
    temperature_of,
)
from tests.sync.world import run_world
from verst.sync.replay import routing

FAMILIES = ("deepseek_v32", "glm_moe_dsa")  # layers of the second share choices
# Every test run has the family whose layers share choices; long runs have both.
SHARING_FIRST = ["glm_moe_dsa", pytest.param("deepseek_v32", marks=pytest.mark.long)]
LAYOUTS = {
    "full-recompute": Layout(1, FULL),
    "tp2-sp-full-recompute": Layout(2, {TP: 2} | SP | FULL),
    "pp2-full-recompute": Layout(2, {PP: 2} | FULL),
    "cp2": Layout(2, {CP: 2}),
    "dp2": Layout(2, {}),
}


@pytest.fixture(scope="module")
def ones(models: dict[str, Path], ranks: Ranks) -> Callable[[str], dict[str, Any]]:
    """A single rank's answer after two steps, by family."""
    return functools.cache(lambda family: ranks.run(models[family], ONE, steps=2, **REPLAY)[0])


def told_logprobs(folder: Path) -> list[np.ndarray]:
    """Log-probabilities of each response under transformers' model with given experts and attended tokens."""
    return [logprobs for logprobs, _ in told(folder)]


def told(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same, with the indexers' own choices there: [layers that choose, tokens, K]."""
    import torch
    from transformers import AutoModelForCausalLM

    family = folder.name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own_choice = {n: model.model.layers[n].self_attn.indexer.forward for n in set(SOURCES[family])}
    found = []
    for index, sample in enumerate(make_samples(None, family)):
        ids = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        choices = random_choices(len(ids) - 1, index, family)
        assert sample.routing is not None
        experts = routing.unpack(sample.routing, *ROUTING[family])
        chosen: list[np.ndarray] = []
        for n, layer in enumerate(model.model.layers):
            if SOURCES[family][n] == n:
                # Transformers uses a mask, so naming a token's first choice again has no effect.
                mine = torch.from_numpy(np.where(choices[:, n] < 0, choices[:, n, :1], choices[:, n]))
                layer.self_attn.indexer.forward = functools.partial(_told, own_choice[n], mine, chosen)
            else:
                assert layer.self_attn.indexer is None
            if n:
                mine = torch.from_numpy(experts[:, n - 1].astype(np.int64))
                layer.mlp.route_tokens_to_experts = lambda logits, mine=mine: _weighted(model, logits, mine)
        with torch.no_grad():
            logits = model(ids[None, :-1], use_cache=False).logits[0]
        start = len(sample.prompt_ids)
        logprobs = (logits[start - 1 :] / torch.from_numpy(temperature_of(sample))[:, None]).log_softmax(-1)
        of_response = logprobs.gather(1, ids[start:, None])[:, 0].numpy()
        found.append((of_response, np.stack(chosen)))
    return found


def _told(own_choice: Any, mine: Any, chosen: list[np.ndarray], *args: Any, **kwargs: Any) -> Any:
    own = own_choice(*args, **kwargs)[0]
    pad = (0, SELECTED - own.shape[1])
    chosen.append(np.pad(own.numpy(), ((0, 0), pad), constant_values=-1))
    return mine[None]


def _weighted(model: Any, logits: Any, experts: Any) -> tuple[Any, Any]:
    weights = logits.sigmoid().gather(1, experts)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return experts, weights * model.config.routed_scaling_factor


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_transformers_told_the_same(
    family: str, ones: Callable[[str], dict[str, Any]], models: dict[str, Path]
) -> None:
    for mine, theirs in zip(ones(family)["before"], told_logprobs(models[family]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_changes_what_the_model_says(
    family: str, ones: Callable[[str], dict[str, Any]], models: dict[str, Path], ranks: Ranks
) -> None:
    free = ranks.run(models[family], ONE, steps=0)[0]
    assert np.abs(np.array(free["before"][4]) - ones(family)["before"][4]).max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_every_layer_is_counted(family: str, ones: Callable[[str], dict[str, Any]]) -> None:
    metrics = ones(family)["reports"][0]["metrics"]
    # Every token of every sample, and the one of the empty micro-batch, which is padding and attends too.
    assert metrics["selection_replayed"] == LAYERS * (sum(map(sum, LENGTHS)) + 1)
    assert metrics["selection_recomputed"] == 0
    assert metrics["selection_wrong"] == 0
    assert metrics["routing_wrong"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_that_the_indexers_would_not_have_made_are_measured(
    family: str, ones: Callable[[str], dict[str, Any]], models: dict[str, Path]
) -> None:
    """Checks the figures of the probed micro-batch, over tokens with more than K to choose from, against
    transformers' model with given choices."""
    choosing = sorted(set(SOURCES[family]))
    missing = compared = tokens = differing = 0
    for index, (_, own) in list(enumerate(told(models[family])))[:2]:
        given = random_choices(sum(LENGTHS[index]) - 1, index, family)[:, choosing]
        for token in range(SELECTED, len(given)):
            lacking = [len(set(given[token, n]) - set(own[n, token])) for n in range(len(choosing))]
            missing += sum(lacking)
            compared += SELECTED * len(choosing)
            differing += any(lacking)
            tokens += 1
    assert tokens == 2 + 5
    metrics = ones(family)["reports"][0]["metrics"]
    assert 0 < missing < compared
    assert metrics["selection_would_differ"] == pytest.approx(missing / compared)
    assert metrics["selection_tokens_differ"] == pytest.approx(differing / tokens)


def test_nothing_is_measured_between_probes(models: dict[str, Path], ranks: Ranks) -> None:
    rarely = REPLAY | {"algorithm": REPLAY["algorithm"] | {"routing_probe_interval": 2}}
    first, second = ranks.run(models["glm_moe_dsa"], ONE, steps=2, **rarely)[0]["reports"]
    assert "selection_would_differ" in first["metrics"]
    assert "selection_would_differ" not in second["metrics"]
    assert second["metrics"]["selection_replayed"] == first["metrics"]["selection_replayed"]


def test_choices_are_compared_as_sets_and_what_is_used_as_it_is() -> None:
    """Choices differ by the positions that only one of them has, in any order.

    The choice that attention used must equal the given one.
    """
    import torch

    from verst.runtime.trainer.model.replayed_selection import Comparison, ReplayedSelection, SelectionCounts

    selection = ReplayedSelection(recomputes=False)
    selection.counts = SelectionCounts(torch.device("cpu"))
    given = torch.tensor([[[0, 1, -1], [4, 2, 3], [7, 5, 1], [2, 1, 0]]])
    own = torch.tensor([[[2, 2, 2], [2, 3, 4], [1, 6, 0], [5, 5, 5]]])
    comparison = Comparison(torch.tensor([[False, True, True, False]]), torch.zeros((1, 4), dtype=torch.bool))
    selection.give(lambda: given, comparison)
    begun = selection.begin()
    assert begun is not None
    assert selection.compares
    selection.compare(own)
    selection.attended(begun)
    assert comparison.differs.tolist() == [[False, False, True, False]]
    assert selection.counts.take() == (4, 0, 0, 6, 2)
    for used, wrong in ((own, 4), (None, 8)):
        selection.give(lambda: given)
        selection.begin()
        assert not selection.compares
        selection.attended(used)
        selection.attended(None)
        assert selection.counts.take() == (4 + wrong, 0, wrong, 6, 2)


def _attends_elsewhere(rank: int, world: int, store: str, folder: Path) -> None:
    """Makes one of Megatron's layers use another choice than the given one, for half of the tokens."""
    import torch

    from tests.sync.world import World
    from verst.runtime.trainer.model.packed_sequences import PackedSequences
    from verst.runtime.trainer.model.replayed_selection import SelectionCounts
    from verst.runtime.trainer.model.sparse_attention import SparseAttention
    from verst.sync.hf.folder import import_weights

    *_, chunks, bound = World(rank, world, store).build(folder, {})
    import_weights(folder, bound)
    layers = [m for m in chunks[0].modules() if isinstance(m, SparseAttention)]
    given = torch.arange(8)[None, :, None].clamp(max=0).expand(1, 8, SELECTED).contiguous()
    counts = SelectionCounts(torch.device("cpu"))
    tokens, positions = torch.arange(8)[None], torch.arange(8)[None]

    def run() -> tuple[int, ...]:
        counts.clear()
        for layer in layers:
            layer.selection.counts = counts
            layer.selection.give(lambda: given)
        chunks[0](tokens, positions, None, packed_seq_params=PackedSequences([8], positions[0]))
        return counts.take()

    assert run() == (8 * LAYERS, 0, 0, 0, 0)
    other = given.clone()
    other[:, 4:] += 1
    layers[1]._get_index_share_topk_holder = lambda *_: {layers[1].source_layer: other}  # type: ignore[method-assign]
    assert run() == (8 * LAYERS, 0, 4, 0, 0)


def test_attention_with_another_choice_is_counted_as_wrong(models: dict[str, Path]) -> None:
    run_world(1, _attends_elsewhere, models["glm_moe_dsa"])


@pytest.mark.parametrize("layout", in_default(LAYOUTS))
@pytest.mark.parametrize("family", SHARING_FIRST)
def test_replay_is_exact_in_every_layout(
    family: str,
    layout: str,
    ones: Callable[[str], dict[str, Any]],
    models: dict[str, Path],
    ranks: Ranks,
) -> None:
    _assert_exact(ones(family), ranks.run(models[family], LAYOUTS[layout], steps=2, **REPLAY), layout)


def _assert_exact(one: dict[str, Any], answers: list[dict[str, Any]], layout: str) -> None:
    for answer in answers:
        for mine, alone in zip(answer["reports"], one["reports"], strict=True):
            assert mine["loss"] == pytest.approx(alone["loss"], rel=1e-4)
            assert mine["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)
            metrics = mine["metrics"]
            assert metrics["selection_replayed"] > 0
            recomputes = "recompute" in layout
            assert metrics["selection_recomputed"] == metrics["selection_replayed"] * recomputes
            assert metrics["selection_wrong"] == 0
            for name in ("selection_would_differ", "selection_tokens_differ"):
                if layout == "dp2":  # it probes other samples
                    assert 0 < metrics[name] <= 1
                else:
                    assert metrics[name] == pytest.approx(alone["metrics"][name], rel=1e-6)
    found = [answer for answer in answers if answer["after"] is not None]
    assert found
    for answer in found:
        for when, tolerance in (("before", 1e-5), ("after", 1e-3)):
            for mine, alone in zip(answer[when], one[when], strict=True):
                np.testing.assert_allclose(mine, alone, atol=tolerance)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_each_stage_gets_the_bytes_of_its_layers_and_each_part_those_of_its_tokens(
    family: str, ones: Callable[[str], dict[str, Any]], models: dict[str, Path], ranks: Ranks
) -> None:
    """A choice that several layers of a stage share is sent once."""
    whole = sum(s.selected.size for s in make_samples(None, family))
    assert ones(family)["selected_bytes"] == whole
    for layout in ("pp2-full-recompute", "cp2"):
        parts = [a["selected_bytes"] for a in ranks.run(models[family], LAYOUTS[layout], **REPLAY)]
        assert sum(parts) == whole
        assert all(0 < part < whole for part in parts)


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_the_trainers_own_choices_are_replayed_too(
    family: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """With one update a step, R2 trains as without replay, with recomputation and without."""
    own = ranks.run(models[family], ONE, steps=2, algorithm={"routing_replay": "trainer"})[0]
    for layout in (ONE, LAYOUTS["full-recompute"]):
        free = ranks.run(models[family], layout, steps=2)[0]
        for mine, theirs in zip(own["reports"], free["reports"], strict=True):
            assert mine["metrics"]["selection_replayed"] > 0
            assert mine["metrics"]["selection_wrong"] == 0
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-6)


def test_samples_without_choices_are_refused() -> None:
    from verst.runtime.trainer.share.selection import SelectionShare

    share = SelectionShare((0, 1), LAYERS, 5)
    with pytest.raises(ValueError, match="sample 2 of group 0 carries no choices of sparse attention"):
        share.require([make_samples(None)[2]])
    with pytest.raises(
        ValueError, match=rf"carries choices of \({LAYERS}, \d+\) layers and bytes; its model's"
    ):
        SelectionShare((0, 1), LAYERS, 4).require([make_samples(None, FAMILIES[0])[4]])
    assert LENGTHS[4] == (6, 9)
