"""A step's line says how its rewards are spread, and how many groups teach nothing for which reason."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.runtime.controller.reporting.test_numbers import a_step, group
from verst.runtime.controller.reporting.rewards import histogram


def test_groups_that_are_all_right_or_all_wrong_are_counted_apart():
    line = a_step(
        [group(0, [1, 1]), group(1, [0, 0]), group(2, [0, 0]), group(3, [0.5, 0.5]), group(4, [0, 1])]
    )
    assert line["groups_all_right"] == pytest.approx(1 / 5)
    assert line["groups_all_wrong"] == pytest.approx(2 / 5)
    assert line["solved_groups"] == pytest.approx(4 / 5)  # of equal rewards, right or wrong
    assert line["reward"] == pytest.approx(0.4)
    assert line["reward_spread"] == pytest.approx(0.5 / 5)
    assert line["rewards"] == {"min": 0, "p10": 0, "median": pytest.approx(0.25), "p90": 1, "max": 1}
    assert line["reward_histogram"] == {"from": [0, 0.5, 1], "to": [0, 0.5, 1], "count": [5, 2, 3]}
    json.dumps(line)  # plain numbers


def test_many_different_rewards_are_counted_in_bins():
    found = histogram(np.arange(100) / 99)
    assert found["count"] == [5] * 20
    assert (found["from"][0], found["to"][-1]) == (0.0, 1.0)
    assert found["from"][1:] == found["to"][:-1]


def test_penalties_below_zero_count_as_wrong():
    line = a_step([group(0, [-1, -0.5]), group(1, [1, 2])])
    assert (line["groups_all_wrong"], line["groups_all_right"]) == (0.5, 0.5)
    assert line["solved_groups"] == 0
