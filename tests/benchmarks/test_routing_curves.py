"""What a reward curve is called: stable, unstable with the reason, or too short to tell."""

from __future__ import annotations

import math

import pytest

from benchmarks.routing_curves import curve_of, figures, summary, verdict


def curve(rewards: list[float], grad_norm: float = 1.0) -> list[dict[str, float]]:
    return [
        {"step": n, "reward": r, "grad_norm": grad_norm, "kl_rollout_k3": 1e-4, "logprob_max_diff": 0.1}
        for n, r in enumerate(rewards)
    ]


RISING = [0.2 + 0.02 * n for n in range(30)]


def test_a_rising_curve_is_stable_and_a_short_one_unknown():
    assert verdict(curve(RISING), failed=False) == {"is": "stable", "seen": []}
    assert verdict(curve(RISING[:12]), failed=False)["is"] == "unknown"
    assert verdict([], failed=False)["is"] == "unknown"


def test_a_fall_a_leap_of_the_gradient_nan_and_a_failure_are_named():
    fallen = verdict(curve([*RISING, *[0.3] * 10]), failed=False)
    assert fallen["is"] == "unstable"
    assert "fell by 0.390" in fallen["seen"][0]
    leap = curve(RISING)
    leap[7]["grad_norm"] = 30.0
    assert verdict(leap, failed=False)["seen"] == ["a gradient norm was 30 times the median"]
    broken = curve(RISING)
    broken[3]["kl_rollout_k3"] = math.nan
    assert verdict(broken, failed=False)["seen"] == ["a figure is not finite"]
    assert verdict([], failed=True)["is"] == "failed"


def test_figures_and_the_summary_by_mode():
    found = figures(curve(RISING))
    assert found["reward_best"] == found["reward_final"] == pytest.approx(0.78)
    assert found["reward_last_10"] == pytest.approx(0.69)
    assert found["ratio_largest"] == pytest.approx(math.exp(0.1))
    runs = [
        {"replay": mode, "verdict": verdict(curve(RISING), failed=False), **figures(curve(RISING))}
        for mode in ("rollout", "off", "off")
    ]
    runs.append({"replay": "off", "verdict": verdict([], failed=True)})
    both = summary(runs)
    assert both["off"]["verdicts"] == {"failed": 1, "stable": 2}
    assert both["rollout"]["reward_best"]["lowest"] == pytest.approx(0.78)


def test_a_step_that_was_begun_twice_counts_once():
    lines = [{"kind": "step", **step} for step in curve([0.1, 0.2])]
    lines += [{"kind": "eval"}, {"kind": "step", **curve([0.1, 0.9])[1]}]
    assert [step["reward"] for step in curve_of(lines)] == [0.1, 0.9]
