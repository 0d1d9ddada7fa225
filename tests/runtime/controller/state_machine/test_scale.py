"""An event takes as long with ten thousand engines as with a thousand."""

from __future__ import annotations

import pytest

from benchmarks.state_machine import Simulation


@pytest.mark.long
@pytest.mark.parametrize("in_order", [False, True])
def test_an_event_does_not_take_longer_with_more_engines(in_order: bool) -> None:
    """Through joining, evaluation, training, stragglers, and the loss of a third of them, twice."""
    few, many = (Simulation(engines, steps=2, in_order=in_order) for engines in (1000, 10_000))
    for run in (few, many):
        run.whole_run()
    assert many.counts["GroupAccepted"] >= 2 * 20_000
    # Sorting all groups at each event took ten times as long.
    assert many.microseconds_per_event < 3 * few.microseconds_per_event
