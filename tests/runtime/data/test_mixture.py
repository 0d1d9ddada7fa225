"""Sources are mixed exactly by their weights, and a prompt's number alone says which row it is."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verst.runtime.data.mixture import Mixture, shares


@settings(max_examples=150)
@given(weights=st.lists(st.integers(1, 25), min_size=1, max_size=7))
def test_at_every_moment_each_source_is_less_than_one_prompt_from_its_share(weights: list[int]) -> None:
    mixture = Mixture(weights)
    given: Counter[int] = Counter()
    for position in range(2 * sum(weights) + 3):
        source, number = mixture.turn(position)
        assert number == given[source], "a source's own prompts come one after the other, also over periods"
        given[source] += 1
        for other, weight in enumerate(weights):
            assert abs(given[other] - Fraction(weight * (position + 1), sum(weights))) < 1


def test_a_turn_needs_no_history() -> None:
    mixture, again = Mixture([0.5, 0.2, 0.3]), Mixture([0.5, 0.2, 0.3])
    forward = [mixture.turn(position) for position in range(1000)]
    assert [again.turn(position) for position in reversed(range(1000))] == forward[::-1]
    # After a whole number of periods the shares are exact.
    assert Counter(source for source, _ in forward) == {0: 500, 1: 200, 2: 300}


def test_weights_are_taken_as_they_are_written() -> None:
    assert shares([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert shares([1, 2.5]) == [2, 5]
    assert shares([3, 3]) == [1, 1]
    with pytest.raises(ValueError, match=r"0.333333, 1.* repeats only after .* prompts: round them"):
        shares([0.3333333, 1.0])
