"""The KL from the reference: whose weights it is, how its weight keeps to a target, what it takes from rewards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, ONE, PP
from tests.runtime.trainer.tiny_models import Layout, in_default, make_samples, transformers_logprobs


@pytest.fixture(scope="module")
def other(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights."""
    folder = tmp_path_factory.mktemp("reference") / "llama"
    shutil.copytree(models["llama"], folder)
    tensors = load_file(folder / "model.safetensors")
    random = np.random.default_rng(3)
    moved = {k: (v + 0.02 * random.standard_normal(v.shape)).astype(v.dtype) for k, v in tensors.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def differences(model: Path, other: Path) -> list[np.ndarray]:
    """log p - log q of each sample's trained tokens."""
    masks = [s.loss_mask.astype(bool) for s in make_samples(None)]
    both = [transformers_logprobs(folder, make_samples(None)) for folder in (model, other)]
    return [(p - q)[mask] for p, q, mask in zip(*both, masks, strict=True)]


def test_a_reference_of_another_folder_scores_and_leaves_the_policy_as_it_is(
    models: dict[str, Path], other: Path, ranks: Ranks
) -> None:
    given = {"kl_coef": 0.1, "reference": {"path": str(other)}}
    (answer,) = ranks.run(models["llama"], ONE, algorithm=given)
    d = np.concatenate(differences(models["llama"], other)).astype(np.float64)
    expected = (np.exp(-d) - 1 + d).mean()
    assert expected > 0.001
    assert answer["reports"][0]["metrics"]["kl_reference_k3"] == pytest.approx(expected, rel=1e-3)
    for mine, theirs in zip(
        answer["before"], transformers_logprobs(models["llama"], make_samples(None)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_refreshed_reference_is_the_policy_of_that_moment(models: dict[str, Path], ranks: Ranks) -> None:
    given = {"kl_coef": 0.1, "reference": {"refresh_interval": 2}}
    reports = ranks.run(models["llama"], ONE, steps=4, algorithm=given)[0]["reports"]
    kl = [report["metrics"]["kl_reference_k3"] for report in reports]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[2] == pytest.approx(0, abs=1e-9)
    assert min(kl[1], kl[3]) > 1e-6


def test_the_weight_of_the_kl_follows_its_target(models: dict[str, Path], ranks: Ranks) -> None:
    """The KL of the first step is 0, so the weight falls by the most; one step's samples are a tenth of the horizon."""
    given = {"kl_coef": 0.1, "kl_target": 1e-7, "kl_horizon": 60}
    reports = ranks.run(models["llama"], ONE, steps=3, algorithm=given)[0]["reports"]
    assert reports[1]["metrics"]["kl_reference_k3"] > 2e-7
    found = [report["metrics"]["kl_coef"] for report in reports]
    assert found == pytest.approx([0.1, 0.1 * 0.98, 0.1 * 0.98 * 1.02])


@pytest.mark.parametrize("layout", in_default(["one", "cp2", "dp2", "pp2"], "one"))
def test_a_kl_in_the_reward_is_summed_over_each_answer_once(
    layout: str, models: dict[str, Path], other: Path, ranks: Ranks
) -> None:
    layouts = {"one": ONE, "cp2": Layout(2, {CP: 2}), "dp2": Layout(2, {}), "pp2": Layout(2, {PP: 2})}
    reward: dict[str, Any] = {
        "kl_coef": 0.5,
        "kl_in": "reward",
        "kl": "verst.runtime.algorithms.divergences:k1",
        "reference": {"path": str(other)},
    }
    answers = ranks.run(models["llama"], layouts[layout], algorithm=reward)
    found: dict[int, float] = {}
    for answer in answers:
        assert not found.keys() & answer["penalties"][0].keys()
        found |= answer["penalties"][0]
    expected = {i: 0.5 * d.sum() for i, d in enumerate(differences(models["llama"], other))}
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # The loss itself has no KL.
    plain = ranks.run(models["llama"], layouts[layout])[0]["reports"][0]
    report = answers[0]["reports"][0]
    assert report["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert report["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)
    assert {"policy_logprobs", "reference_logprobs", "forward_backward"} <= report["seconds"].keys()


def test_a_reference_with_another_bias_of_its_routers_is_refused(
    models: dict[str, Path], ranks: Ranks, tmp_path: Path
) -> None:
    """It would route with the policy's bias: a wrong KL that nothing shows."""
    folder = tmp_path / "other"
    shutil.copytree(models["deepseek_v3"], folder)
    tensors = load_file(folder / "model.safetensors")
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    assert biases
    save_file({**tensors, biases[0]: tensors[biases[0]] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(pytest.fail.Exception, match=r"other values than .* such as a router's bias"):
        ranks.run(models["deepseek_v3"], ONE, algorithm={"kl_coef": 0.1, "reference": {"path": str(folder)}})
