"""The cost of an evaluation is what the two steps after it take longer than others."""

from __future__ import annotations

import pytest

from benchmarks.evaluation_cost import cost


def lines(extra: float) -> list[dict]:
    steps = [
        {
            "kind": "step",
            "step": n,
            "seconds": {"step": 9.0 if n < 3 else 2.0 + (extra if n % 4 == 2 else 0.0)},
        }
        for n in range(1, 20)
    ]
    when = {0: "before", 19: "after"}
    evals = [{"kind": "eval", "step": n, "when": when.get(n, "during")} for n in (0, 4, 8, 12, 16, 19)]
    return steps + evals


@pytest.mark.parametrize("extra", [0.0, 0.5])
def test_the_extra_seconds_are_found_wherever_they_fall(extra: float) -> None:
    found = cost(lines(extra))
    assert (found["evaluations"], found["median_step_seconds_without"], found["interval"]) == (4, 2.0, 4)
    assert found["seconds_an_evaluation"] == pytest.approx(extra)
    assert found["share_of_a_step"] == pytest.approx(extra / 8)


def test_it_needs_steps_of_both_kinds() -> None:
    with pytest.raises(ValueError, match="use an interval of 4 or more"):
        cost(line for line in lines(0.0) if line["kind"] == "step")
