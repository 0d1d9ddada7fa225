"""Each moment of a step belongs to one phase, and the one that the run waited for is named."""

from __future__ import annotations

from verst.runtime.controller.reporting.critical_path import Segment, critical_path, seconds_by_phase


def test_a_synchronous_step_is_cut_into_its_parts():
    busy = {
        "weight_sync": [(0.5, 1.0)],
        "rollout": [(1.2, 6.0)],
        "train": [(6.1, 9.0)],
        "checkpoint": [(0.0, 0.5)],
    }
    assert critical_path(0.0, 9.0, busy) == [
        Segment("checkpoint", 0.0, 0.5),
        Segment("weight_sync", 0.5, 1.0),
        Segment("wait", 1.0, 1.2),
        Segment("rollout", 1.2, 6.0),
        Segment("wait", 6.0, 6.1),
        Segment("train", 6.1, 9.0),
    ]


def test_rollout_that_training_hides_is_not_on_the_path():
    busy = {"rollout": [(0.0, 10.0)], "train": [(4.0, 9.5)], "weight_sync": [(9.5, 10.0)]}
    assert seconds_by_phase(critical_path(0.0, 10.0, busy)) == {
        "train": 5.5,
        "rollout": 4.0,
        "weight_sync": 0.5,
    }


def test_of_a_checkpoint_and_the_rollout_beside_it_the_one_that_ends_last_counts():
    short = {"checkpoint": [(0.0, 2.0)], "rollout": [(0.5, 6.0)]}
    assert seconds_by_phase(critical_path(0.0, 6.0, short)) == {"rollout": 5.5, "checkpoint": 0.5}
    long = {"checkpoint": [(0.0, 7.0)], "rollout": [(0.5, 6.0)]}
    assert seconds_by_phase(critical_path(0.0, 7.0, long)) == {"checkpoint": 7.0}


def test_what_began_before_the_step_counts_from_its_beginning():
    assert seconds_by_phase(critical_path(5.0, 7.0, {"rollout": [(0.0, 6.0)]})) == {
        "rollout": 1.0,
        "wait": 1.0,
    }


def test_a_step_without_a_length_has_no_path_but_what_is_left_is_waited_for():
    assert critical_path(3.0, 3.0, {}) == []
    assert seconds_by_phase(critical_path(3.0, 4.0, {})) == {"wait": 1.0}
