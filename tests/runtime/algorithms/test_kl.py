"""The weight of the KL follows its target, and options of the KL that do nothing are refused."""

from __future__ import annotations

from typing import Any

import pytest

from verst.runtime.algorithms.config import AlgorithmConfig
from verst.runtime.algorithms.kl_control import KlControl


def config(**options: Any) -> AlgorithmConfig:
    return AlgorithmConfig(steps=1, prompts_per_step=5, samples_per_prompt=2, **options)


def test_the_weight_moves_by_the_clipped_relative_error_times_samples_over_horizon() -> None:
    control = KlControl(config(kl_coef=1.0, kl_target=0.1, kl_horizon=100))
    assert control.adapts
    expected = 1.0
    for kl, error in ((0.11, 0.1), (0.5, 0.2), (0.0, -0.2), (0.1, 0.0)):
        control.measured(kl)
        expected *= 1 + 0.1 * error
        assert control.coefficient == pytest.approx(expected)


def test_the_weight_stays_above_zero_however_short_the_horizon_may_be() -> None:
    """At the shortest that is allowed; with one of 2 it would be 0 after the first step, and below 0 with one of 1."""
    control = KlControl(config(kl_coef=1.0, kl_target=0.1, kl_horizon=3))
    control.measured(0.0)
    assert control.coefficient == pytest.approx(1 / 3)


def test_without_a_target_the_weight_is_fixed() -> None:
    control = KlControl(config(kl_coef=0.3))
    control.measured(100.0)
    assert (control.adapts, control.coefficient) == (False, 0.3)


ADVANTAGES = "verst.runtime.algorithms.advantages:"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_target": 0.1}, "kl_target is 0.1, but has no effect without kl_coef"),
        ({"kl_coef": 0.1, "kl_horizon": 5}, "kl_horizon is 5, but has no effect without kl_target"),
        (
            {"kl_coef": 0.1, "kl_target": 0.1, "kl_horizon": 2},
            "kl_horizon is 2, a fifth of a step's 10 samples or less",
        ),
        ({"kl_in": "reward"}, "kl_in is reward, but has no effect without kl_coef"),
        ({"reference": {"path": "x"}}, "has no effect without kl_coef"),
        (
            {"kl_coef": 0.1, "reference": {"path": "x", "refresh_interval": 3}},
            "path and refresh_interval exclude each other",
        ),
        ({"kl_coef": 0.1, "kl_in": "reward", "kl_importance": True}, "weighs the divergence in the loss"),
        (
            {"kl_coef": 0.1, "kl_in": "reward", "advantage": f"{ADVANTAGES}mean_normalised"},
            "does not fit the advantage mean_normalised",
        ),
    ],
)
def test_options_of_the_kl_without_an_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_a_kl_in_the_reward_may_be_k1() -> None:
    config(kl_coef=0.1, kl_in="reward", kl="verst.runtime.algorithms.divergences:k1")
