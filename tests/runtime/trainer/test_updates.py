"""A step of several updates equals a plain float64 loop on transformers' model, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, EP, PP
from tests.runtime.trainer.tiny_models import ADVANTAGES, Layout, in_default, make_samples, temperature_of

# A large epsilon: Adam otherwise makes full steps of gradients that are rounding.
ADAM = {"lr": 1e-2, "adam-eps": 1e-4, "weight-decay": 0.0, "clip-grad": 1.0}
ONE = Layout(1, ADAM)
OPTIONS: dict[str, Any] = {"mini_batches": 2, "epochs": 2}
LAYOUTS = {
    "dp2": Layout(2, ADAM),
    "cp2": Layout(2, ADAM | {CP: 2}),
    "pp2": Layout(2, ADAM | {PP: 2}),
}


def options(old: str = "auto", **more: Any) -> dict[str, Any]:
    return {"algorithm": OPTIONS | more, "trainer": {"old_logprobs": old}}


@pytest.fixture(scope="module")
def single(models: dict[str, Path], ranks: Ranks) -> dict[str, Any]:
    return ranks.run(models["llama"], ONE, steps=2, **options())[0]


@pytest.mark.parametrize("old", ["recompute", "rollout"])
def test_two_mini_batches_and_two_epochs_equal_a_float64_loop(
    old: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """Tokens of version 0 in two steps: stale in the second, for which recompute takes the trainer's own policy."""
    answer = ranks.run(models["llama"], ONE, steps=2, on_policy=False, **options(old))[0]
    reports, after = _plain_loop(models["llama"], 2, old)
    for mine, theirs in zip(answer["reports"], reports, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["metrics"]["ratio"] == pytest.approx(theirs["ratio"], rel=1e-4)
        assert mine["metrics"]["clip_fraction"] == pytest.approx(theirs["clip_fraction"])
        assert mine["lr"] == pytest.approx(1e-2)
        assert mine["metrics"]["trained_tokens"] == sum(s.loss_mask.sum() for s in make_samples(None))
    assert reports[1]["clip_fraction"] > 0  # the ratio has left the clip's bounds somewhere
    for mine, theirs in zip(answer["after"], after, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4)


def _plain_loop(folder: Path, steps: int, old: str) -> tuple[list[dict[str, float]], list[np.ndarray]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4, weight_decay=0.0)
    samples = make_samples(folder)

    def logprobs(index: int) -> Any:
        sample = samples[index]
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids])).long()
        start = len(sample.prompt_ids)
        temperature = torch.from_numpy(temperature_of(sample)).double()[:, None]
        whole = (model(tokens[None]).logits[0, start - 1 : -1] / temperature).log_softmax(-1)
        return whole.gather(1, tokens[start:, None])[:, 0]

    reports = []
    for _ in range(steps):
        engine = [torch.from_numpy(s.logprobs).double() for s in samples]
        with torch.no_grad():
            before = [logprobs(i) for i in range(6)] if old == "recompute" else engine
        updates = []
        for mini_batch in ([0, 1, 2], [3, 4, 5]) * 2:
            masks = {i: torch.from_numpy(samples[i].loss_mask).double() for i in mini_batch}
            count = sum(mask.sum() for mask in masks.values())
            loss, ratios, clipped = torch.zeros((), dtype=torch.float64), 0.0, 0.0
            for i in mini_batch:
                ratio = torch.exp(logprobs(i) - before[i])
                free, bounded = ratio * ADVANTAGES[i], ratio.clamp(0.8, 1.2) * ADVANTAGES[i]
                loss = loss - (masks[i] * torch.minimum(free, bounded)).sum() / count
                ratios += float((masks[i] * ratio.detach()).sum() / count)
                clipped += float((masks[i] * (bounded < free)).sum() / count)
            adam.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            updates.append((loss.item(), norm.item(), ratios, clipped))
        means = np.mean(updates, axis=0)
        reports.append(dict(zip(("loss", "grad_norm", "ratio", "clip_fraction"), means, strict=True)))
    with torch.no_grad():
        return reports, [logprobs(i).numpy() for i in range(6)]


@pytest.mark.parametrize("layout", in_default(LAYOUTS))
def test_updates_are_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    for answer in ranks.run(models["llama"], LAYOUTS[layout], steps=2, **options()):
        for mine, theirs in zip(answer["reports"], single["reports"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2, abs=1e-4)
        for mine, theirs in zip(answer["after"] or [], single["after"], strict=answer["after"] is not None):
            np.testing.assert_allclose(mine, theirs, atol=2e-3)


def test_the_learning_rate_schedule_counts_updates(models: dict[str, Path], ranks: Ranks) -> None:
    """A linear decay over eight updates; a step reports the rate of its fourth."""
    falling = Layout(1, ADAM | {"lr-decay-style": "linear", "min-lr": 0.0})
    reports = ranks.run(models["llama"], falling, steps=2, **options())[0]["reports"]
    assert [r["lr"] for r in reports] == pytest.approx([1e-2 * 5 / 8, 1e-2 * 1 / 8])


@pytest.mark.parametrize("layout", [ONE, pytest.param(Layout(2, ADAM | {EP: 2}), marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", in_default(["rollout", "trainer"], "rollout"))
def test_every_update_replays_the_same_experts(
    mode: str, layout: Layout, models: dict[str, Path], ranks: Ranks
) -> None:
    given = {"routing": True, "algorithm": OPTIONS | {"routing_replay": mode, "routing_probe_interval": 1}}
    twice = ranks.run(models["qwen3_moe"], layout, **given)[0]["reports"][0]["metrics"]
    given["algorithm"] |= {"epochs": 1}
    once = ranks.run(models["qwen3_moe"], layout, **given)[0]["reports"][0]["metrics"]
    assert twice["routing_wrong"] == once["routing_wrong"] == 0
    assert twice["routing_replayed"] == 2 * once["routing_replayed"] > 0
