"""What a step does: old policies, supervised steps, bf16 with fp32 masters, the schedule, and learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.trainer.conftest import Ranks
from tests.runtime.trainer.test_layouts import ONE, PP
from tests.runtime.trainer.tiny_models import ADVANTAGES, Layout, make_samples


def test_recomputed_policy_equals_the_current_one_at_the_first_pass(
    models: dict[str, Path], ranks: Ranks
) -> None:
    auto = ranks.run(models["llama"], ONE)[0]["reports"][0]
    layout = Layout(2, {PP: 2})
    for answer in ranks.run(models["llama"], layout, trainer={"old_logprobs": "recompute"}):
        report = answer["reports"][0]
        assert report["metrics"]["ratio"] == pytest.approx(1.0, abs=1e-6)
        assert report["metrics"]["clip_fraction"] == 0
        assert report["grad_norm"] == pytest.approx(auto["grad_norm"], rel=1e-4)
        assert report["seconds"].keys() == {"old_logprobs", "forward_backward", "optimizer"}


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


def test_balancing_loss_may_be_turned_on_and_does_not_depend_on_the_layout(
    models: dict[str, Path], ranks: Ranks
) -> None:
    balanced = {"moe-router-load-balancing-type": "aux_loss", "moe-aux-loss-coeff": 1.0}
    free = ranks.run(models["qwen3_moe"], ONE)[0]["reports"][0]
    one = ranks.run(models["qwen3_moe"], Layout(1, balanced))[0]["reports"][0]
    two = ranks.run(models["qwen3_moe"], Layout(2, balanced | {PP: 2}))[0]["reports"][0]
    assert one["loss"] == pytest.approx(free["loss"])
    assert one["grad_norm"] != pytest.approx(free["grad_norm"], rel=1e-3)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


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
    masks = [s.loss_mask.astype(bool) for s in make_samples(None)]
    logp = np.concatenate([np.array(x)[m] for x, m in zip(answer["before"], masks, strict=True)])
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


@pytest.mark.long  # the ranks start again afterwards
def test_engines_of_another_model_are_refused_before_the_first_update(models, ranks) -> None:
    """The samples' log-probabilities are the model's, plus noise of 0.2 nats: too much for float32."""
    with pytest.raises(pytest.fail.Exception, match=r"step 0, before its update: .* differ by 0\.1\d+ nats"):
        ranks.run(models["llama"], ONE, trainer={"max_logprob_diff": None})
    (answer,) = ranks.run(models["llama"], ONE, trainer={"max_logprob_diff": 0.3})
    assert 0.1 < answer["reports"][0]["metrics"]["logprob_mean_diff"] < 0.2
