"""Advantages of equal rewards are exactly 0, and rewards of any size give the advantages of their closed form."""

from __future__ import annotations

import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verst.runtime.algorithms.advantages import (
    RELATIVE_TO_GROUP,
    group_centred,
    group_normalised,
    group_normalised_sample,
    leave_one_out,
)

ALL = [group_normalised, group_normalised_sample, group_centred, leave_one_out]
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


def test_the_functions_that_need_a_group_are_named():
    names = [path.removeprefix("verst.runtime.algorithms.advantages:") for path in RELATIVE_TO_GROUP]
    assert names == [function.__name__ for function in ALL]
