"""Rows are drawn by a curriculum's weights, each once in a pass, also across a checkpoint."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from verst.runtime.data.curricula import by_column, easy_first, half_right, near_pass_rate
from verst.runtime.data.curriculum import (
    CurriculumCall,
    CurriculumState,
    RowHistory,
    SourceCurriculum,
    weights_of,
)
from verst.runtime.messages.jobs import Prompt


def source(rows: int, weights: list[float] | None = None, seed: int = 5) -> SourceCurriculum:
    made = SourceCurriculum("sums", rows, seed)
    made.renew(np.array(weights or [1.0] * rows), 1)
    return made


def test_a_pass_has_each_row_with_a_weight_once() -> None:
    curriculum = source(6, [1, 0, 5, 1, 0, 2])
    taken = []
    for prompt in range(12):
        taken.append(curriculum.row(prompt))
        curriculum.finished(prompt, 1.0)
    passes = taken[:4], taken[4:8], taken[8:]
    assert all(sorted(one) == [0, 2, 3, 5] for one in passes)
    assert [curriculum.row(prompt) for prompt in range(12)] == taken, "a prompt keeps its row"


def test_the_first_row_of_a_draw_comes_in_proportion_to_its_weight() -> None:
    first = np.zeros(3)
    for seed in range(4000):
        first[source(3, [1, 2, 5], seed).row(0)] += 1
    assert first / 4000 == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.03)


def test_rows_that_are_under_way_are_passed_over_unless_all_are() -> None:
    curriculum = source(3)
    first = [curriculum.row(prompt) for prompt in range(2)]
    curriculum.renew(np.ones(3), 2)
    third = curriculum.row(2)
    assert sorted([*first, third]) == [0, 1, 2]
    assert curriculum.row(3) in (0, 1, 2), "more prompts than rows"


def test_the_history_is_of_what_was_scored_and_does_not_depend_on_the_order() -> None:
    def scored(order: list[int]) -> RowHistory:
        curriculum = source(4)
        rows = {prompt: curriculum.row(prompt) for prompt in range(4)}
        for prompt in order:
            curriculum.finished(prompt, None if prompt == 3 else 0.1 * prompt)
            curriculum.finished(prompt, 9.0)  # a second report changes nothing
        curriculum.end_step(2)
        for prompt in (4, 5, 6, 7):
            rows[prompt] = curriculum.row(prompt)
            curriculum.finished(prompt, 1.0)
        curriculum.end_step(3)
        assert rows[3] not in [rows[prompt] for prompt in range(3)]
        again = curriculum.history.mean[rows[2]]
        assert again == pytest.approx((0.2 + 1.0) / 2)
        assert curriculum.history.mean[rows[3]] == 1.0
        assert curriculum.history.groups.sum() == 7
        assert set(curriculum.history.step) == {3}
        return curriculum.history

    one, other = scored([0, 1, 2, 3]), scored([3, 1, 0, 2])
    for name in ("groups", "mean", "last", "step"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_restored_curriculum_goes_on_as_if_nothing_had_happened() -> None:
    weights = [1.0, 3.0, 0.5, 2.0, 1.0]
    whole = source(5, weights)
    for prompt in range(7):
        whole.row(prompt)
        if prompt != 4:
            whole.finished(prompt, prompt / 10)
        if prompt == 3:
            whole.end_step(2)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(whole.state()), type=CurriculumState)
    resumed = SourceCurriculum("sums", 5, 5)
    resumed.restore(state)
    for one in (whole, resumed):
        one.finished(4, 0.9)
        one.end_step(3)
    assert [resumed.row(4), *(resumed.row(p) for p in range(7, 20))] == [
        whole.row(4),
        *(whole.row(p) for p in range(7, 20)),
    ]
    for name in ("groups", "mean", "last", "step"):
        assert np.array_equal(getattr(whole.history, name), getattr(resumed.history, name), equal_nan=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, r"returned weights of shape \[\], not \[3\]|not 3 weights"),
        ([1, 2], r"returned weights of shape \[2\], not \[3\]"),
        (["a", 1, 2], "not 3 weights, one for each row"),
        ([1, -1, 2], r"returned -1\.0 for row 1"),
        ([1, float("nan"), 2], "returned nan for row 1"),
        ([0, 0, 0], "the weight 0 for every row"),
    ],
)
def test_what_are_no_weights(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights_of(3)(value)


def call(step: int, levels: list[float], last: list[float] | None = None) -> CurriculumCall:
    rows = [Prompt(ids=[1], text="", label=None, metadata={"difficulty": level}) for level in levels]
    n, scores = len(rows), np.array(last or [np.nan] * len(rows))
    history = RowHistory(
        groups=np.zeros(n, np.int64), mean=scores, last=scores, step=np.full(n, -1, np.int64)
    )
    return CurriculumCall(source="", step=step, steps=100, rows=rows, history=history)


def test_easy_rows_come_first_and_all_rows_from_half_of_the_run_on() -> None:
    levels = [float(n) for n in reversed(range(100))]
    allowed = {step: int(easy_first(call(step, levels)).sum()) for step in (1, 26, 51, 100)}
    # sqrt(t (1 - 0.01) + 0.01) of the rows at the time t: 0, 0.5, 1, 1
    assert allowed == {1: 10, 26: round(100 * (0.5 * 0.99 + 0.01) ** 0.5), 51: 100, 100: 100}
    first = easy_first(call(1, levels))
    assert set(np.flatnonzero(first)) == set(range(90, 100)), "those of the lowest level"
    with pytest.raises(KeyError, match="size"):
        by_column("size")(call(1, levels))


def test_rows_near_the_target_are_preferred_and_none_is_forgotten() -> None:
    weights = half_right(call(3, [0, 0, 0, 0], [0.5, 0.75, 1.0, float("nan")]))
    assert weights == pytest.approx([1, np.exp(-0.5), np.exp(-2), 1])
    assert near_pass_rate(0.2, 0.01)(call(3, [0], [0.9])) == pytest.approx([0.05])
