"""Losses and the k3 divergence against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from tests.runtime.algorithms.token_batches import config, token_batch
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.divergences import k3
from verst.runtime.algorithms.losses import grpo, policy_ratio, reinforce, sft
from verst.runtime.algorithms.tokens import TokenBatch


def _batch(
    ratio: float, advantage: float, low: float = 0.2, high: float = 0.3, c: float | None = None
) -> TokenBatch:
    return token_batch(
        [math.log(ratio) - 1.0],
        advantages=[advantage],
        old_logprobs=[-1.0],
        config=config(clip_low=low, clip_high=high, clip_ratio_c=c),
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0.0),
        (1.2, 2.0, -2.4, -2.4, 0.0),  # d(ratio * A) / dlogp = ratio * A
        (1.5, 2.0, -2.6, 0.0, 1.0),  # above 1 + high with a positive advantage: no more incentive
        (1.5, -2.0, 3.0, 3.0, 0.0),  # above, negative: still pushed down
        (0.5, -2.0, 1.6, 0.0, 1.0),  # below 1 - low with a negative advantage
        (0.5, 2.0, -1.0, -1.0, 0.0),
    ],
)
def test_grpo_clips_where_the_advantage_would_push_further(ratio, advantage, loss, gradient, clipped) -> None:
    batch = _batch(ratio, advantage)
    result = grpo(batch)
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert batch.logprobs.grad.item() == pytest.approx(gradient, rel=1e-5)
    assert result.metrics["clip_fraction"].item() == clipped


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped", "dual"),
    [
        (2.5, -2.0, 5.0, 5.0, 0.0, 0.0),  # below c: as without
        (4.0, -2.0, 6.0, 0.0, 1.0, 1.0),  # the loss stays at -c * A
        (4.0, 2.0, -2.6, 0.0, 1.0, 0.0),  # positive: the ordinary clip
        (0.5, -2.0, 1.6, 0.0, 1.0, 0.0),
        (1e300, -2.0, 6.0, 0.0, 1.0, 1.0),
    ],
)
def test_the_dual_clip_bounds_the_loss_of_a_negative_advantage(
    ratio, advantage, loss, gradient, clipped, dual
) -> None:
    batch = _batch(ratio, advantage, c=3.0)
    result = grpo(batch)
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(loss, rel=1e-5)
    assert batch.logprobs.grad.item() == pytest.approx(gradient, rel=1e-5)
    assert [result.metrics[f"{name}_fraction"].item() for name in ("clip", "dual_clip")] == [clipped, dual]


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("ratio", [1e300, 1e40, 1e-40, 1e-300])
def test_losses_and_gradients_of_an_extreme_ratio_are_finite(ratio: float, advantage: float) -> None:
    """fp32 holds no ratio above 3e38, and 0 * inf is NaN."""
    batch = _batch(ratio, advantage)
    result = grpo(batch)
    (result.loss + k3(batch.logprobs, batch.old_logprobs)).sum().backward()
    assert result.loss.isfinite().all()
    assert batch.logprobs.grad.isfinite().all()
    assert k3(batch.old_logprobs, batch.logprobs).isfinite().all()
    assert policy_ratio(batch.logprobs, batch.old_logprobs).isfinite().all()
    assert result.metrics["clip_fraction"].item() == (advantage < 0 or (advantage > 0 and ratio > 1))


def test_a_policy_far_above_its_reference_is_still_pulled_back() -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    k3(logprobs, torch.tensor([-500.0])).sum().backward()
    assert logprobs.grad.item() == 1.0


def test_k3s_gradient_is_that_of_the_reversed_divergence() -> None:
    logits = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    policy = logits.log_softmax(-1)
    (policy.detach().exp() * k3(policy, reference)).sum().backward()
    of_k3, logits.grad = logits.grad, None
    (reference.exp() * (reference - logits.log_softmax(-1))).sum().backward()
    torch.testing.assert_close(of_k3, logits.grad)


def test_reinforce_gradient_is_minus_the_advantage() -> None:
    batch = _batch(1.7, 0.4)
    reinforce(batch).loss.sum().backward()
    assert batch.logprobs.grad.item() == pytest.approx(-0.4)


def test_sft_is_the_negative_log_likelihood() -> None:
    assert sft(torch.tensor([-1.5, -0.25])).tolist() == [1.5, 0.25]


def test_k3_estimates_the_kl_divergence_without_bias_and_never_below_zero() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2]).log()
    reference = torch.tensor([0.2, 0.3, 0.5]).log()
    values = k3(policy, reference)
    assert (values >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * values).sum().item() == pytest.approx(exact.item(), rel=1e-6)
    assert k3(policy, policy).tolist() == [0.0, 0.0, 0.0]


def test_a_dual_clip_without_a_ratio_is_refused() -> None:
    sizes = {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 2, "clip_ratio_c": 3.0}
    AlgorithmConfig(**sizes)
    with pytest.raises(
        ValueError,
        match=r"clip_ratio_c is 3\.0, but the loss reinforce does not use it: .+ for grpo, gspo",
    ):
        AlgorithmConfig(**sizes, loss="verst.runtime.algorithms.losses:reinforce")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction_high": 3.0}, r"correction_high is 3\.0, but has no effect without correction"),
        ({"correction_veto": 1e-4}, "has no effect without correction"),
        ({"kl_importance": True}, "kl_importance is True, but has no effect without kl_coef"),
        ({"sapo_tau_negative": 2.0}, r"sapo_tau_negative is 2\.0, but the loss grpo does not use it"),
        ({"loss": "verst.runtime.algorithms.losses:sapo", "clip_high": 0.3}, "the loss sapo does not use it"),
        (
            {"correction": "verst.runtime.algorithms.corrections:negative_masked", "correction_low": 0.5},
            r"correction_low is 0\.5, but the correction negative_masked does not use it",
        ),
        (
            {"kl_coef": 0.1, "kl": "verst.runtime.algorithms.divergences:k1"},
            "kl is k1, whose gradient is zero in expectation",
        ),
        (
            {"correction": "a:b", "correction_low": 3.0},
            "correction_low is 3, above correction_high, which is 2",
        ),
    ],
)
def test_an_option_without_an_effect_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)
    # A resolved recipe holds every key, with its default.
    AlgorithmConfig.model_validate(config().model_dump())


def test_the_options_of_all_bundled_functions_are_known() -> None:
    from verst.launcher.check.hooks.bundled import bundled_hooks
    from verst.runtime.algorithms import option_uses

    assert set(option_uses._OF_LOSSES) == set(bundled_hooks("algorithm.loss"))
    assert set(option_uses._OF_CORRECTIONS) == set(bundled_hooks("algorithm.correction"))
