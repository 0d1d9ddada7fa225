"""What a step does: old policies, supervised steps, bf16 with fp32 masters, the schedule, and learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import ONE
from tests.runtime.trainer.tiny_models import ADVANTAGES, Layout, make_samples, transformers_logprobs


def test_tokens_of_an_older_version_are_weighed_by_the_engines_logprobs(
    models: dict[str, Path], ranks: Ranks
) -> None:
    """The first steps are the same. In the second, only stale tokens have a ratio other than one."""
    fresh = ranks.run(models["llama"], ONE, steps=2)[0]["reports"]
    stale = ranks.run(models["llama"], ONE, steps=2, on_policy=False)[0]["reports"]
    assert [r["metrics"]["ratio"] for r in fresh] == [1.0, 1.0]
    assert stale[0]["metrics"]["ratio"] == 1.0
    rollout = ranks.run(models["llama"], ONE, steps=2, trainer={"old_logprobs": "rollout"})[0]["reports"]
    assert stale[0]["grad_norm"] == fresh[0]["grad_norm"] != rollout[0]["grad_norm"]
    assert stale[1]["metrics"]["clip_fraction"] > 0


def test_metrics_of_extreme_ratios_are_finite_and_the_dual_clip_is_counted(
    models: dict[str, Path], ranks: Ranks
) -> None:
    rollout = {"trainer": {"old_logprobs": "rollout"}, "noise": 400.0}
    plain = ranks.run(models["llama"], ONE, **rollout)[0]["reports"][0]
    dual = ranks.run(models["llama"], ONE, algorithm={"clip_ratio_c": 3.0}, **rollout)[0]["reports"][0]
    for report in (plain, dual):
        assert np.isfinite([report["loss"], report["grad_norm"], *report["metrics"].values()]).all()
        assert report["metrics"]["logprob_max_diff"] > 88.7  # fp32 overflows there
    assert "dual_clip_fraction" not in plain["metrics"]
    assert 0 < dual["metrics"]["dual_clip_fraction"] < dual["metrics"]["clip_fraction"] <= 1
    assert dual["loss"] < 1e3 < plain["loss"]


def test_rollout_divergence_is_measured_against_the_engines_logprobs(
    models: dict[str, Path], ranks: Ranks
) -> None:
    answer = ranks.run(models["qwen3"], ONE)[0]
    differences, masks = [], []
    for found, sample in zip(answer["before"], make_samples(models["qwen3"]), strict=True):
        differences.append(np.array(found) - sample.logprobs)
        masks.append(sample.loss_mask)
    d, mask = np.concatenate(differences), np.concatenate(masks).astype(bool)
    metrics = answer["reports"][0]["metrics"]
    assert metrics["logprob_max_diff"] == pytest.approx(np.abs(d[mask]).max(), rel=1e-4)
    assert metrics["kl_rollout_k3"] == pytest.approx((np.exp(d) - 1 - d)[mask].mean(), rel=1e-3)


def test_supervised_step_is_the_mean_negative_log_likelihood_and_lowers_it(
    models: dict[str, Path], ranks: Ranks
) -> None:
    answer = ranks.run(models["llama"], ONE, steps=3, loss="sft")[0]
    samples = make_samples(None)
    untempered = transformers_logprobs(models["llama"], samples, tempered=False)
    logp = np.concatenate([x[s.loss_mask.astype(bool)] for x, s in zip(untempered, samples, strict=True)])
    losses = [report["loss"] for report in answer["reports"]]
    assert losses[0] == pytest.approx(-logp.mean(), rel=1e-5)
    assert losses[0] > losses[1] > losses[2]


def test_policy_steps_make_good_responses_likelier_and_bad_ones_rarer(
    models: dict[str, Path], ranks: Ranks
) -> None:
    answer = ranks.run(models["qwen3_moe"], ONE, steps=4)[0]
    changes = [
        float((np.array(b) - np.array(a))[s.loss_mask.astype(bool)].mean())
        for a, b, s in zip(answer["before"], answer["after"], make_samples(None), strict=True)
    ]
    for change, advantage in zip(changes, ADVANTAGES, strict=True):
        assert np.sign(change) == np.sign(advantage), (changes, ADVANTAGES)


def test_bf16_keeps_fp32_masters(models: dict[str, Path], ranks: Ranks) -> None:
    exact = ranks.run(models["llama"], ONE, steps=3)[0]
    rounded = ranks.run(models["llama"], ONE, steps=3, dtype="bfloat16")[0]
    for mine, theirs in zip(rounded["reports"], exact["reports"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)
    assert rounded["master_dtypes"] == ["torch.float32"]
    assert rounded["parameter_dtypes"] == ["torch.bfloat16"]


def test_learning_rate_follows_megatrons_schedule_in_steps(models: dict[str, Path], ranks: Ranks) -> None:
    schedule = Layout(1, {"lr": 1e-3, "lr-warmup-iters": 2, "lr-decay-style": "linear", "min-lr": 0.0})
    reports = ranks.run(models["llama"], schedule, steps=4)[0]["reports"]
    # Two steps of warm-up from zero, then a linear decay to zero at step 8.
    assert [r["lr"] for r in reports] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3 * 5 / 6])


@pytest.mark.parametrize(
    ("broken", "dtype"),
    [
        ("nan_gradient", "bfloat16"),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (
                ("nan_gradient", "float32"),
                ("infinite_gradient", "float32"),
                ("infinite_gradient", "bfloat16"),
            )
        ),
    ],
)
def test_what_is_not_finite_never_reaches_the_weights(
    models: dict[str, Path], ranks: Ranks, dtype: str, broken: str
) -> None:
    """With Megatron's own check off, which would otherwise end the rank in the backward pass."""
    unchecked = Layout(2, {"pipeline-model-parallel-size": 2, "no-check-for-nan-in-loss-and-grad": True})
    loss = {"loss": f"tests.runtime.trainer.own_losses:{broken}"}
    for answer in ranks.run(models["llama"], unchecked, dtype=dtype, algorithm=loss, refuses=True):
        assert answer["refused"] == (
            "step 1: gradients hold values that are not finite; the weights are not changed"
        )
        assert answer["reports"] == []
        assert answer["after"] == answer["before"]


@pytest.mark.long  # the ranks start again afterwards
def test_engines_of_another_model_are_refused_before_the_first_update(models, ranks) -> None:
    """The samples' log-probabilities are the model's, plus noise of 0.2 nats: too much for float32."""
    with pytest.raises(pytest.fail.Exception, match=r"step 1, before its update: .* differ by 0\.1\d+ nats"):
        ranks.run(models["llama"], ONE, trainer={"max_logprob_diff": None})
    (answer,) = ranks.run(models["llama"], ONE, trainer={"max_logprob_diff": 0.3})
    assert 0.1 < answer["reports"][0]["metrics"]["logprob_mean_diff"] < 0.2
