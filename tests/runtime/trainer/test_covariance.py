"""Steps with clip_cov and kl_cov are the same in every layout, and treat the tokens apart that a plain count says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_updates import LAYOUTS, ONE
from tests.runtime.trainer.tiny_models import ADVANTAGES, make_samples

pytestmark = pytest.mark.long
SHARE = 0.15
LOSSES: dict[str, dict[str, Any]] = {
    "clip_cov": {"cov_low": -0.5, "cov_high": 2.0, "clip_low": 1.0, "clip_high": 1.0},
    "kl_cov": {"cov_kl_coef": 0.5},
}


def run(ranks: Ranks, folder: Path, layout: Any, name: str, **more: Any) -> list[dict[str, Any]]:
    algorithm = {
        "loss": f"verst.runtime.algorithms.losses:{name}",
        "cov_share": SHARE,
        **LOSSES[name],
        **more,
    }
    return ranks.run(folder, layout, steps=2, algorithm={"mini_batches": 2, "epochs": 2} | algorithm)


@pytest.fixture(scope="module")
def single(models: dict[str, Path], ranks: Ranks) -> dict[str, dict[str, Any]]:
    return {name: run(ranks, models["llama"], ONE, name)[0] for name in LOSSES}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LOSSES)
def test_updates_are_the_same_in_every_layout(
    name: str, layout: str, single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    for answer in run(ranks, models["llama"], LAYOUTS[layout], name):
        for mine, theirs in zip(answer["reports"], single[name]["reports"], strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-6)
            assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
            assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=1e-2, abs=1e-4)
        after = answer["after"]
        for mine, theirs in zip(after or [], single[name]["after"], strict=after is not None):
            np.testing.assert_allclose(mine, theirs, atol=2e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_the_first_step_reports_the_covariance_of_its_mini_batches(
    name: str, single: dict[str, Any], models: dict[str, Path]
) -> None:
    samples, before = make_samples(models["llama"]), single[name]["before"]
    means, shares = [], []
    for mini_batch in ([0, 1, 2], [3, 4, 5]):
        p = np.concatenate([np.array(before[i])[samples[i].loss_mask == 1] for i in mini_batch])
        a = np.concatenate([np.full(samples[i].loss_mask.sum(), ADVANTAGES[i]) for i in mini_batch])
        found = (p - p.mean()) * (a - a.mean())
        inside = ((found > -0.5) & (found < 2.0)).sum() if name == "clip_cov" else len(found)
        means.append(found.mean())
        shares.append(min(int(SHARE * len(found)), inside) / len(found))
    metrics = single[name]["reports"][0]["metrics"]
    assert metrics["covariance"] == pytest.approx(np.mean(means), rel=1e-3)
    assert metrics["covariance_chosen"] == pytest.approx(np.mean(shares))
    assert metrics["covariance_chosen"] > 0.05


def test_what_is_treated_apart_changes_the_weights(
    single: dict[str, Any], models: dict[str, Path], ranks: Ranks
) -> None:
    none = {"clip_cov": {"cov_low": 500.0, "cov_high": 501.0}, "kl_cov": {"cov_kl_coef": 1e-9}}
    for name, more in none.items():
        plain = run(ranks, models["llama"], ONE, name, **more)[0]
        moved = [
            np.abs(np.array(a) - b).max() for a, b in zip(plain["after"], single[name]["after"], strict=True)
        ]
        assert max(moved) > 1e-2
