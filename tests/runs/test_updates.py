"""A whole run whose steps take several updates of their batch, with the KL in the reward, learns the toy task."""

from __future__ import annotations

import itertools
from statistics import mean

import pytest

from tests.runs.tiny_moe import tiny_run


@pytest.mark.long
@pytest.mark.timeout(1300)
def test_mini_batches_and_epochs_with_a_kl_in_the_reward_learn(model, tmp_path):
    run = tiny_run(
        model,
        tmp_path / "run",
        "algorithm.stages.0.steps=40",
        "algorithm.steps=24",
        "algorithm.mini_batches=2",
        "algorithm.epochs=2",
        "algorithm.kl_coef=0.01",
        "algorithm.kl_in=reward",
        "algorithm.kl=verst.runtime.algorithms.divergences:k1",
        "algorithm.kl_target=0.05",
        "algorithm.kl_horizon=1280",
    )
    run.finish(timeout=1200)
    steps = run.lines("step")
    assert [line["version"] for line in steps] == list(
        range(41, 65)
    )  # a version for each step, not each update
    rewards = [line["reward"] for line in steps]
    assert mean(rewards[-6:]) > mean(rewards[:6]) + 0.05, rewards
    for line in steps:
        # Of the first update alone: later ones have moved away.
        assert line["logprob_max_diff"] <= 1e-4
        assert line["kl_rollout_k3"] < 1e-9
        assert line["routing_replayed"] > 0
        assert line["routing_wrong"] == 0
        assert {"train/policy_logprobs", "train/reference_logprobs"} <= line["seconds"].keys()
    assert any(line["clip_fraction"] > 0 for line in steps)
    # The policy leaves the reference, so answers pay, and the weight falls and rises with the target.
    assert steps[0]["kl_penalty"] == pytest.approx(0, abs=1e-3)  # the reference routes freely
    assert any(line["kl_penalty"] > 0 for line in steps)
    for before, after in itertools.pairwise(steps):
        error = max(-0.2, min(0.2, before["kl_reference_k3"] / 0.05 - 1))
        assert after["kl_coef"] == pytest.approx(before["kl_coef"] * (1 + 0.1 * error))
