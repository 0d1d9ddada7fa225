"""Losses and advantages against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from verst.runtime.algorithms.advantages import (
    group_centred,
    group_normalised,
    group_normalised_sample,
    leave_one_out,
)
from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.losses import PolicyBatch, grpo, kl_k3, policy_ratio, reinforce, sft


def _batch(
    ratio: float, advantage: float, low: float = 0.2, high: float = 0.3, c: float | None = None
) -> PolicyBatch:
    logprobs = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    return PolicyBatch(logprobs, torch.tensor([-1.0]), torch.tensor([advantage]), low, high, c)


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
    assert result.clipped.item() == clipped


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
    assert (result.clipped.item(), result.dual_clipped.item()) == (clipped, dual)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("ratio", [1e300, 1e40, 1e-40, 1e-300])
def test_losses_and_gradients_of_an_extreme_ratio_are_finite(ratio: float, advantage: float) -> None:
    """fp32 holds no ratio above 3e38, and 0 * inf is NaN."""
    batch = _batch(ratio, advantage)
    result = grpo(batch)
    (result.loss + kl_k3(batch.logprobs, batch.old_logprobs)).sum().backward()
    assert result.loss.isfinite().all()
    assert batch.logprobs.grad.isfinite().all()
    assert kl_k3(batch.old_logprobs, batch.logprobs).isfinite().all()
    assert policy_ratio(batch.logprobs, batch.old_logprobs).isfinite().all()
    assert result.clipped.item() == (advantage < 0 or (advantage > 0 and ratio > 1))


def test_a_policy_far_above_its_reference_is_still_pulled_back() -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    kl_k3(logprobs, torch.tensor([-500.0])).sum().backward()
    assert logprobs.grad.item() == 1.0


def test_k3s_gradient_is_that_of_the_reversed_divergence() -> None:
    logits = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    policy = logits.log_softmax(-1)
    (policy.detach().exp() * kl_k3(policy, reference)).sum().backward()
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
    k3 = kl_k3(policy, reference)
    assert (k3 >= 0).all()
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * k3).sum().item() == pytest.approx(exact.item(), rel=1e-6)
    assert kl_k3(policy, policy).tolist() == [0.0, 0.0, 0.0]


def test_normalised_advantages_have_mean_zero_and_unit_spread() -> None:
    assert group_normalised([1.0, 0.0, 0.0, 1.0]) == pytest.approx([1, -1, -1, 1], rel=1e-5)
    assert group_normalised([0.5, 0.5, 0.5]) == [0.0, 0.0, 0.0]


def test_the_sample_deviation_divides_by_one_less() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.25, 0.5]
    expected = (torch.tensor(rewards) - sum(rewards) / 8) / (torch.tensor(rewards).std() + 1e-6)
    assert group_normalised_sample(rewards) == pytest.approx(expected.tolist(), rel=1e-5)
    population = group_normalised(rewards)
    assert population == pytest.approx(
        [a * (8 / 7) ** 0.5 for a in group_normalised_sample(rewards)], rel=1e-5
    )
    assert group_normalised_sample([0.1] * 3) == [0.0] * 3
    assert group_normalised_sample([7.0]) == [0.0]
    assert group_normalised_sample([1e200, -1e200]) == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_centred_advantages_keep_the_scale_of_rewards() -> None:
    assert group_centred([3.0, 1.0, 2.0]) == [1.0, -1.0, 0.0]


def test_leave_one_out_compares_with_the_others() -> None:
    assert leave_one_out([3.0, 0.0, 0.0]) == [3.0, -1.5, -1.5]
    assert leave_one_out([7.0]) == [0.0]


def test_a_dual_clip_without_a_ratio_is_refused() -> None:
    sizes = {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 2, "clip_ratio_c": 3.0}
    AlgorithmConfig(**sizes)
    with pytest.raises(
        ValueError, match=r"clip_ratio_c is 3\.0, but the loss reinforce has no policy ratio to clip"
    ):
        AlgorithmConfig(**sizes, loss="verst.runtime.algorithms.losses:reinforce")
