"""Losses over whole samples, corrections and divergences are the same in every layout; own losses are taken whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, ONE, PP
from tests.runtime.trainer.tiny_models import ADVANTAGES, Layout, in_default, make_samples

LAYOUTS = {"cp2": Layout(2, {CP: 2}), "pp2": Layout(2, {PP: 2}), "dp2": Layout(2, {})}
OWN = "tests.runtime.trainer.own_losses:with_a_figure"


def options(**more: Any) -> dict[str, Any]:
    # Tokens of version 0 have the trainer as the old policy, whose correction against the engine is not 1.
    algorithm = {
        "loss": "verst.runtime.algorithms.losses:gspo",
        "correction": "verst.runtime.algorithms.corrections:sequence_truncated",
        "correction_low": 0.8,
        "correction_high": 1.2,
        "kl_coef": 0.2,
        "kl": "verst.runtime.algorithms.divergences:k2",
        "kl_importance": True,
    }
    return {"algorithm": {**algorithm, **more}}


@pytest.fixture(scope="module")
def single(models: dict[str, Path], ranks: Ranks) -> dict[str, Any]:
    return ranks.run(models["llama"], ONE, steps=3, on_policy=False, **options())[0]


@pytest.mark.parametrize("layout", in_default(LAYOUTS))
def test_a_step_is_the_same_in_every_layout(
    layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    answers = ranks.run(models["llama"], LAYOUTS[layout], steps=3, on_policy=False, **options())
    for answer in answers:
        for mine, theirs in zip(answer["reports"], single["reports"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
            assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-3, abs=1e-5)


def test_the_correction_is_the_samples_importance_against_the_engine(
    single: dict[str, Any], models: dict[str, Path]
) -> None:
    factors, masks = [], []
    for before, sample in zip(single["before"], make_samples(models["llama"]), strict=True):
        mask = sample.loss_mask.astype(bool)
        ratio = np.exp((np.array(before) - sample.logprobs)[mask].sum())
        factors.append(np.full(mask.sum(), np.clip(ratio, 0.8, 1.2)))
        masks.append(mask)
    expected = np.concatenate(factors)
    metrics = single["reports"][0]["metrics"]
    assert 0.8 < metrics["correction_mean"] < 1.2
    assert metrics["correction_mean"] == pytest.approx(expected.mean(), rel=1e-4)
    assert metrics["correction_ess"] == pytest.approx(expected.mean() ** 2 / (expected**2).mean(), rel=1e-4)
    assert metrics["correction_zero"] == 0


def test_a_correction_that_masks_everything_leaves_the_loss_without_effect(
    models: dict[str, Path], ranks: Ranks
) -> None:
    masked = options(
        correction="verst.runtime.algorithms.corrections:token_masked",
        correction_low=5.0,
        correction_high=6.0,
        kl_coef=0.0,
        kl="verst.runtime.algorithms.divergences:k3",
        kl_importance=False,
    )
    report = ranks.run(models["llama"], ONE, **masked)[0]["reports"][0]
    assert (report["loss"], report["grad_norm"], report["metrics"]["correction_zero"]) == (0.0, 0.0, 1.0)


def test_a_users_loss_reports_figures_and_has_the_gradient_of_the_entropy(
    models: dict[str, Path], ranks: Ranks
) -> None:
    own = ranks.run(models["llama"], LAYOUTS["pp2"], algorithm={"loss": OWN})
    tokens = [int(s.loss_mask.sum()) for s in make_samples(None)]
    positive = sum(n for n, a in zip(tokens, ADVANTAGES, strict=True) if a > 0) / sum(tokens)
    for answer in own:
        assert answer["reports"][0]["metrics"]["own/positive"] == pytest.approx(positive)
    ours = {"loss": "verst.runtime.algorithms.losses:reinforce", "entropy_coef": 0.05}
    bundled = ranks.run(models["llama"], ONE, algorithm=ours)[0]["reports"][0]
    assert own[0]["reports"][0]["grad_norm"] == pytest.approx(bundled["grad_norm"], rel=1e-5)
    plain = ranks.run(models["llama"], ONE, algorithm={"loss": ours["loss"]})[0]["reports"][0]
    assert plain["grad_norm"] != pytest.approx(bundled["grad_norm"], rel=1e-3)
