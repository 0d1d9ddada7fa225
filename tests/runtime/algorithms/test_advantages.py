"""Advantages of equal rewards are exactly 0, and rewards of any size give the advantages of their closed form."""

from __future__ import annotations

import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verst.runtime.algorithms import advantages
from verst.runtime.algorithms.advantages import RELATIVE_TO_GROUP
from verst.runtime.messages.sample import GroupMeta


def group(rewards: list[float], tokens: list[int] | None = None, id: int = 0) -> GroupMeta:
    count = len(rewards)
    return GroupMeta(
        id=id, shard=0, lengths=[9] * count, trained_tokens=tokens or [4] * count, rewards=rewards,
        finish=["stop"] * count, oldest_version=0,
    )  # fmt: skip


def one_group(name: str):
    """An advantage function, of the rewards of a single group."""
    function = getattr(advantages, name)
    return lambda rewards: function([group(rewards)])[0]


group_normalised, group_normalised_sample, group_centred, leave_one_out = ALL = [
    one_group(name)
    for name in ("group_normalised", "group_normalised_sample", "group_centred", "leave_one_out")
]
finite = st.floats(-1e308, 1e308)


@pytest.mark.parametrize("advantage", ALL)
@given(reward=finite, count=st.integers(1, 40))
def test_equal_rewards_have_no_advantage(advantage, reward, count):
    assert advantage([reward] * count) == [0.0] * count


@pytest.mark.parametrize("advantage", ALL)
@pytest.mark.parametrize(
    ("count", "reward"), [(3, 0.1), (3, 0.7), (6, 0.1), (7, 0.2), (8, 0.35), (3, 123.456)]
)
def test_rounding_gives_equal_rewards_no_advantage(advantage, count, reward):
    assert advantage([reward] * count) == [0.0] * count


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2, max_size=16))
def test_advantages_are_those_of_exact_arithmetic(rewards):
    mean = sum(map(Fraction, rewards)) / len(rewards)
    exact = [float(Fraction(r) - mean) for r in rewards]
    largest = max(map(abs, rewards))
    assert group_centred(rewards) == pytest.approx(exact, abs=1e-15 * largest, rel=1e-12)
    count = len(rewards)
    others = [d * count / (count - 1) for d in exact]
    assert leave_one_out(rewards) == pytest.approx(others, abs=3e-15 * largest, rel=1e-12)
    for advantage, spread in (
        (group_normalised, statistics.pstdev),
        (group_normalised_sample, statistics.stdev),
    ):
        deviation = spread(map(Fraction, rewards))
        normalised = [d / (deviation + 1e-6) for d in exact]
        assert advantage(rewards) == pytest.approx(
            normalised, abs=1e-14 * largest / (deviation + 1e-6), rel=1e-9
        )


@pytest.mark.parametrize("size", [1e154, 1e200, 1e308])
def test_the_largest_rewards_have_the_advantages_of_small_ones(size):
    rewards = [size, 0.0, -size, 0.0]
    assert group_normalised(rewards) == pytest.approx([2**0.5, 0, -(2**0.5), 0], rel=1e-12)
    assert group_centred(rewards) == pytest.approx([size, 0, -size, 0], rel=1e-12)
    assert leave_one_out(rewards) == pytest.approx([size / 3 * 4, 0, -size / 3 * 4, 0], rel=1e-12)


@pytest.mark.parametrize("advantage", ALL)
@given(rewards=st.lists(finite, min_size=1, max_size=12))
def test_no_finite_reward_raises(advantage, rewards):
    assert len(advantage(rewards)) == len(rewards)


@pytest.mark.parametrize("path", RELATIVE_TO_GROUP)
def test_functions_relative_to_the_group_teach_nothing_about_a_group_of_one(path):
    function = getattr(advantages, path.removeprefix("verst.runtime.algorithms.advantages:"))
    assert function([group([1.0], id=1), group([0.25], id=2)]) == [[0.0], [0.0]]


def test_normalised_advantages_have_mean_zero_and_unit_spread() -> None:
    assert group_normalised([1.0, 0.0, 0.0, 1.0]) == pytest.approx([1, -1, -1, 1], rel=1e-5)
    assert group_normalised([0.5, 0.5, 0.5]) == [0.0, 0.0, 0.0]


def test_the_sample_deviation_divides_by_one_less() -> None:
    rewards = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.25, 0.5]
    deviation = statistics.stdev(rewards) + 1e-6
    expected = [(r - statistics.fmean(rewards)) / deviation for r in rewards]
    assert group_normalised_sample(rewards) == pytest.approx(expected, rel=1e-9)
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


groups_of_a_step = st.lists(
    st.lists(st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 50)), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
).map(lambda rows: [group([r for r, _ in row], [n for _, n in row], i) for i, row in enumerate(rows)])


@given(groups_of_a_step)
def test_maxrl_divides_the_difference_by_the_mean(groups):
    """arXiv:2602.02710: the mean over the group of A * grad log p is the mean over successes minus that over all."""
    for made, found in zip(groups, advantages.mean_normalised(groups), strict=True):
        rewards = np.array(made.rewards)
        mean = rewards.mean()
        expected = (rewards - mean) / mean if np.ptp(rewards) else np.zeros(len(rewards))
        assert found == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


def test_maxrl_refuses_rewards_that_are_no_rates():
    with pytest.raises(ValueError, match="needs rewards of 0 and above, and the group has -1"):
        advantages.mean_normalised([group([1.0, -1.0])])


@given(groups_of_a_step)
def test_opo_weighs_the_baseline_by_length(groups):
    for made, found in zip(groups, advantages.length_weighted(groups), strict=True):
        tokens = np.array(made.trained_tokens, float)
        tokens = tokens if tokens.any() else np.ones(len(tokens))
        rewards = np.array(made.rewards)
        expected = rewards - (tokens * rewards).sum() / tokens.sum()
        assert found == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9 * max(1.0, rewards.max()))


@pytest.mark.parametrize(
    ("name", "baseline"), [("step_normalised", False), ("step_normalised_baseline", True)]
)
@given(groups=groups_of_a_step)
def test_reinforce_plus_plus_normalises_over_the_tokens_of_the_step(name, baseline, groups):
    """arXiv:2501.03262: as if each token had its sample's reward, normalised over all tokens."""
    found = [a for row in getattr(advantages, name)(groups) for a in row]
    rewards = np.concatenate(
        [np.array(g.rewards) - (np.mean(g.rewards) if baseline else 0.0) for g in groups]
    )
    tokens = np.concatenate([g.trained_tokens for g in groups])
    tokens = tokens if tokens.any() else np.ones(len(tokens), int)
    flat = np.repeat(rewards, tokens)
    expected = (rewards - flat.mean()) / (flat.std() + 1e-6)
    size = max(1.0, np.abs(rewards).max())
    if np.ptp(rewards) <= 1e-9 * size or flat.std() <= 1e-6 * size:
        return  # rounding in numpy's own mean is as large as the signal
    assert found == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


def test_reinforce_plus_plus_without_a_signal_is_exactly_zero():
    equal = [group([0.1, 0.1, 0.1]), group([0.1])]
    assert advantages.step_normalised(equal) == [[0.0] * 3, [0.0]]
    assert advantages.step_normalised_baseline([group([0.1] * 3), group([0.7] * 6)]) == [[0.0] * 3, [0.0] * 6]


def test_a_function_of_one_group_becomes_one_of_the_step():
    best = advantages.per_group(lambda rewards: [float(r == max(rewards)) for r in rewards])
    assert best([group([1.0, 3.0]), group([2.0])]) == [[0.0, 1.0], [1.0]]
