"""A step whose samples are scored first, of which some are then left out: sums, weights, and updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, ONE, PP, TP
from tests.runtime.trainer.tiny_models import Layout, in_default, make_samples, temperature_of

LAYOUTS = {
    "one": ONE,
    "cp2": Layout(2, {CP: 2}),
    "dp2": Layout(2, {}),
    "pp2": Layout(2, {PP: 2}),
    "tp2": Layout(2, {TP: 2}),
}
KEPT, DROPPED = [0, 2, 3, 5], [1, 4]
# The rank is told which samples were dropped; the function is the controller's.
NAMED: dict[str, Any] = {"logprob_filter": "own.module:function"}


def in_float64(folder: Path, other: Path | None = None) -> list[dict[str, float]]:
    """The sums of each sample by transformers' own model, over its trained tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    found = []
    for sample in make_samples(folder):
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        start, mask = len(sample.prompt_ids), sample.loss_mask.astype(bool)
        temperature = torch.from_numpy(temperature_of(sample)).double()[:, None]
        with torch.no_grad():
            whole = (model(tokens[None]).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
        mine = whole.gather(1, tokens[start:, None])[:, 0].numpy()[mask]
        engine = sample.logprobs.astype(np.float64)[mask]
        found.append(
            {
                "logprobs": mine.sum(),
                "rollout_logprobs": engine.sum(),
                "difference": np.abs(mine - engine).sum(),
                "entropy": -(whole.exp() * whole).sum(-1).numpy()[mask].sum(),
            }
        )
    return found


@pytest.mark.parametrize("layout", in_default(LAYOUTS, "cp2"))
def test_each_sample_is_scored_once_and_its_sums_are_those_of_a_float64_model(
    layout: str, models: dict[str, Path], ranks: Ranks
) -> None:
    answers = ranks.run(models["llama"], LAYOUTS[layout], algorithm=NAMED)
    found: dict[int, dict[str, Any]] = {}
    for answer in answers:
        assert not found.keys() & answer["scores"][0].keys()
        found |= answer["scores"][0]
    expected = in_float64(models["llama"])
    assert sorted(found) == list(range(len(expected)))
    for index, sums in enumerate(expected):
        mine = {name: found[index][name] for name in sums}
        assert mine == pytest.approx(sums, rel=1e-4, abs=1e-4)
        assert found[index]["reference_logprobs"] is None
        assert found[index]["penalty"] == 0


def test_a_filter_that_keeps_all_changes_no_figure(models: dict[str, Path], ranks: Ranks) -> None:
    """Also not the policy ratio, which a second forward pass could move away from 1."""
    given: dict[str, Any] = {"steps": 2, "shown": [(0, 1), (0, 4)]}
    plain = ranks.run(models["llama"], ONE, **given)[0]
    filtered = ranks.run(models["llama"], ONE, algorithm=NAMED, **given)[0]
    for mine, theirs in zip(filtered["reports"], plain["reports"], strict=True):
        seconds = mine.pop("seconds"), theirs.pop("seconds")
        assert seconds[0].keys() - seconds[1].keys() == {"policy_logprobs"}
        assert mine == theirs
    assert filtered["after"] == plain["after"]


@pytest.mark.parametrize("layout", in_default(LAYOUTS, "cp2"))
def test_the_samples_that_stay_are_trained_as_if_the_others_were_not_there(
    layout: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """The step of the same weights without the others' tokens is a run of its own, with micro-batches of its own."""
    tokens = [int(s.loss_mask.sum()) for s in make_samples(None)]
    scale = sum(tokens) / sum(tokens[i] for i in KEPT)
    alone = ranks.run(models["llama"], ONE, split=[[[0], [2], [3, 5]]])[0]["reports"][0]
    for answer in ranks.run(models["llama"], LAYOUTS[layout], algorithm=NAMED, dropped=DROPPED):
        report = answer["reports"][0]
        assert report["loss"] == pytest.approx(alone["loss"] * scale, rel=1e-4)
        assert report["grad_norm"] == pytest.approx(alone["grad_norm"] * scale, rel=1e-4)
        assert report["metrics"]["trained_tokens"] == sum(tokens[i] for i in KEPT)
        for name in ("entropy", "ratio", "kl_rollout_k3", "logprob_max_diff"):
            assert report["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-7)
        assert report["tokens"] == sum(s.length for s in make_samples(None))


@pytest.mark.long
def test_the_gradient_is_that_of_the_samples_that_stay(models: dict[str, Path], ranks: Ranks) -> None:
    tokens = [int(s.loss_mask.sum()) for s in make_samples(None)]
    scale = sum(tokens) / sum(tokens[i] for i in KEPT)
    free = Layout(1, {"clip-grad": 1e9})  # Megatron scales a clipped gradient in place
    (alone,) = ranks.run(models["llama"], free, split=[[[0], [2], [3, 5]]], gradient=True)
    (mine,) = ranks.run(models["llama"], free, algorithm=NAMED, dropped=DROPPED, gradient=True)
    np.testing.assert_allclose(mine["gradient"], alone["gradient"] * scale, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("old", in_default(["auto", "recompute", "rollout"], "auto"))
@pytest.mark.parametrize("layout", in_default(["one", "cp2", "dp2", "pp2"], "dp2"))
def test_a_mini_batch_of_which_no_sample_stays_has_no_update(
    layout: str, old: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """The schedule, a linear decay over eight updates, counts two of four; the second epoch leaves the old policy."""
    falling = {"lr": 1e-2, "adam-eps": 1e-4, "lr-decay-style": "linear", "min-lr": 0.0}
    falls = Layout(LAYOUTS[layout].world_size, LAYOUTS[layout].megatron | falling)
    given: dict[str, Any] = {"mini_batches": 2, "epochs": 2, **NAMED}
    trainer = {"old_logprobs": old}
    for answer in ranks.run(models["llama"], falls, algorithm=given, trainer=trainer, dropped=[3, 4, 5]):
        report = answer["reports"][0]
        assert report["lr"] == pytest.approx(1e-2 * 7 / 8)
        tokens = [int(s.loss_mask.sum()) for s in make_samples(None)]
        assert report["metrics"]["trained_tokens"] == sum(tokens[:3])
        if old != "rollout":
            assert report["metrics"]["ratio"] != pytest.approx(1, abs=1e-6)


def test_scores_of_a_reference_a_teacher_and_a_critic_stand_side_by_side(
    models: dict[str, Path], ranks: Ranks
) -> None:
    """The reference is the policy itself, and so is the teacher; with a critic the filter works on the same step."""
    given = {
        **NAMED,
        "kl_coef": 0.1,
        "teacher": {"path": str(models["llama"])},
        "advantage": "verst.runtime.algorithms.advantages:gae",
        "critic": {},
    }
    (answer,) = ranks.run(models["llama"], ONE, algorithm=given, dropped=DROPPED)
    for index, sums in enumerate(in_float64(models["llama"])):
        score = answer["scores"][0][index]
        assert score["reference_logprobs"] == pytest.approx(sums["logprobs"], rel=1e-4)
        # The teacher answers at the temperature of the sampling, too.
        assert score["teacher_logprobs"] == pytest.approx(sums["logprobs"], rel=1e-4)
    report = answer["reports"][0]
    tokens = [int(s.loss_mask.sum()) for s in make_samples(None)]
    assert report["metrics"]["trained_tokens"] == sum(tokens[i] for i in KEPT)
    assert report["metrics"]["critic_grad_norm"] > 0
