"""Losses and advantages against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from verst.runtime.algorithms.advantages import group_centred, group_normalised, leave_one_out
from verst.runtime.algorithms.losses import PolicyBatch, grpo, kl_k3, reinforce, sft


def _batch(ratio: float, advantage: float, low: float = 0.2, high: float = 0.3) -> PolicyBatch:
    logprobs = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    return PolicyBatch(logprobs, torch.tensor([-1.0]), torch.tensor([advantage]), low, high)


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


def test_centred_advantages_keep_the_scale_of_rewards() -> None:
    assert group_centred([3.0, 1.0, 2.0]) == [1.0, -1.0, 0.0]


def test_leave_one_out_compares_with_the_others() -> None:
    assert leave_one_out([3.0, 0.0, 0.0]) == [3.0, -1.5, -1.5]
    assert leave_one_out([7.0]) == [0.0]
