"""GAE, returns and the value loss against the papers' sums in float64, and which options of a critic are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.algorithms.token_batches import config
from verst.runtime.algorithms.losses import clipped_value
from verst.runtime.algorithms.returns import discounted, gae, value_targets

GAE = "verst.runtime.algorithms.advantages:gae"
RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0), (0.95, 1.0), (0.5, 0.99)])
def test_gae_is_the_weighted_mean_of_estimates_over_k_steps(length: int, gamma: float, lam: float) -> None:
    """arXiv:1506.02438, eqs. 11 to 16: (1 - lam) * sum of lam^(k-1) * A^(k), where after the end every A^(k) is the
    same, so that those weigh lam^(k-1) in all."""
    values, rewards = RANDOM.normal(size=length), RANDOM.normal(size=length)
    after = np.append(values, 0.0)
    for t, found in enumerate(gae(values, rewards, gamma, lam)):
        expected = 0.0
        for k in range(1, length - t + 1):
            estimate = sum(gamma**i * rewards[t + i] for i in range(k)) + gamma**k * after[t + k] - values[t]
            expected += estimate * lam ** (k - 1) * (1 - lam if k < length - t else 1)
        assert found == pytest.approx(expected, abs=1e-12)


def test_targets_are_returns_where_lam_is_one_and_else_lambda_returns() -> None:
    values, rewards = RANDOM.normal(size=6), RANDOM.normal(size=6)
    returns = [sum(0.9 ** (s - t) * rewards[s] for s in range(t, 6)) for t in range(6)]
    assert discounted(rewards, 0.9) == pytest.approx(returns)
    assert value_targets(values, rewards, 0.9, 1.0) == pytest.approx(returns)
    assert gae(values, rewards, 0.9, 1.0) == pytest.approx(returns - values)
    assert value_targets(values, rewards, 0.9, 0.3) == pytest.approx(gae(values, rewards, 0.9, 0.3) + values)


def test_the_value_loss_is_bounded_where_it_would_reward_a_further_move() -> None:
    old = torch.tensor([0.0, 0.0, 0.0, 0.0])
    values = torch.tensor([0.5, -0.5, 0.1, 0.5], requires_grad=True)
    targets = torch.tensor([1.0, 1.0, 1.0, 0.2])
    found = clipped_value(values, old, targets, 0.2)
    # Towards the target, and beyond the bound: the error of the bound, without a gradient. Away from it: the own error.
    assert found.loss.tolist() == pytest.approx([0.8**2 / 2, 1.5**2 / 2, 0.9**2 / 2, 0.3**2 / 2])
    assert found.metrics["value_clip_fraction"].tolist() == [1, 0, 0, 0]
    found.loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0, -1.5, -0.9, 0.3])
    free = clipped_value(values, old, targets, None)
    assert free.loss.tolist() == pytest.approx([0.5**2 / 2, 1.5**2 / 2, 0.9**2 / 2, 0.3**2 / 2])
    assert free.metrics == {}


def test_a_value_within_the_bound_is_not_held_whatever_the_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    old, targets = torch.rand(1000, generator=random), torch.rand(1000, generator=random)
    values = old + 0.3 * (torch.rand(1000, generator=random) - 0.5)
    found = clipped_value(values, old, targets, 0.2)
    assert found.metrics["value_clip_fraction"].sum() == 0
    assert found.loss.equal(clipped_value(values, old, targets, None).loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage": GAE}, "gae, which needs the values of a critic"),
        ({"critic": {}}, "the advantage group_normalised uses no values: set advantage to verst"),
        ({"advantage": GAE, "critic": {}, "skip_zero_advantage": True}, "skip_zero_advantage is true, but with a"),
        ({"advantage": GAE, "critic": {"warmup_steps": 20}}, "warmup_steps is 20, and there are 20 steps"),
        ({"advantage": GAE, "critic": {"optimizer": {"lr": 1e-3}}}, "critic.lr"),
        (
            {"advantage": GAE, "critic": {"optimizer": {"tensor-model-parallel-size": 2}}},
            "has tensor-model-parallel-size, which is no option of its own",
        ),
        ({"advantage": GAE, "critic": {"lam": 1.1}}, "less than or equal to 1"),
    ],
)  # fmt: skip
def test_a_critic_without_a_use_and_its_wrong_options_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_updates_of_policy_and_critic_are_counted_apart() -> None:
    made = config(advantage=GAE, critic={"warmup_steps": 5}, mini_batches=1, epochs=2)
    assert (made.updates, made.critic_updates) == (30, 40)
    assert [made.warms_up(version) for version in (0, 4, 5)] == [True, True, False]
    own = config(advantage="my.module:shaped", critic={"lr": 2e-5, "optimizer": {"weight-decay": 0.0}})
    assert own.critic is not None
    assert own.critic.arguments({"lr": 1e-6, "clip-grad": 0.5}) == {
        "lr": 2e-5, "clip-grad": 0.5, "weight-decay": 0.0
    }  # fmt: skip
