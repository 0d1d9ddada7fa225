"""A teacher of another size and family scores the policy's tokens, and its advantages are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import CP, PP, SP, TP
from tests.runtime.trainer.tiny_models import (
    ADVANTAGES,
    Layout,
    in_default,
    make_samples,
    transformers_logprobs,
)

LAYOUTS = {
    "one": Layout(1, {}),
    "dp2": Layout(2, {}),
    "cp2": Layout(2, {CP: 2}),
    "tp2-sp": Layout(2, {TP: 2} | SP),
    "pp2": Layout(2, {PP: 2}),
}


@pytest.mark.parametrize("layout", in_default(LAYOUTS, "dp2"))
@pytest.mark.parametrize("family", in_default(["qwen3_moe", "deepseek_v3"], "qwen3_moe"))
def test_a_teacher_with_experts_teaches_a_dense_policy(
    layout: str, family: str, models: dict[str, Path], ranks: Ranks
) -> None:
    """On the first update the ratio is 1, so the loss is minus the weighted sum of the advantages."""
    coef, teacher = 0.7, models[family]
    algorithm = {
        "teacher": {"path": str(teacher), "coef": coef},
        "loss": "verst.runtime.algorithms.losses:grpo",
    }
    answers = ranks.run(models["llama"], LAYOUTS[layout], algorithm=algorithm)
    samples = make_samples(None)
    masks = [sample.loss_mask.astype(bool) for sample in samples]
    ours, theirs = (transformers_logprobs(folder, samples) for folder in (models["llama"], teacher))
    gains = [(q - p)[mask].astype(np.float64) for p, q, mask in zip(ours, theirs, masks, strict=True)]
    advantages = [advantage + coef * gain for advantage, gain in zip(ADVANTAGES, gains, strict=True)]
    for answer in answers:
        (report,) = answer["reports"]
        assert report["metrics"]["kl_teacher"] == pytest.approx(-np.concatenate(gains).mean(), rel=1e-4)
        assert report["loss"] == pytest.approx(-np.concatenate(advantages).mean(), rel=1e-4)
        assert "teacher_logprobs" in report["seconds"]
    assert np.abs(np.concatenate(gains)).mean() > 0.5, "the models differ enough to tell a wrong one"
    plain = ranks.run(models["llama"], LAYOUTS[layout])[0]["reports"][0]
    assert answers[0]["reports"][0]["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-2)
    before = next(answer["before"] for answer in reversed(answers) if answer["before"] is not None)
    for mine, wanted in zip(before, ours, strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-5)
