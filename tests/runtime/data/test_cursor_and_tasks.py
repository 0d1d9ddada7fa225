"""Every epoch visits each row once, and tasks never train on what they hold out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verst.runtime.data import tasks
from verst.runtime.data.cursor import row_of
from verst.runtime.rewards import Answer, exact, number, reasoning_gym


@settings(max_examples=50)
@given(rows=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    visited = [row_of(epoch * rows + place, rows, seed) for place in range(rows)]
    assert sorted(visited) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [row_of(epoch * 50 + place, 50, seed) for place in range(50)]

    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert order(1, 1) == order(1, 1)
    assert [row_of(group, 3, 1, shuffle=False) for group in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_addition_holds_out_problems_in_both_orders(tmp_path: Path) -> None:
    tasks.addition(tmp_path, held_out=100)
    train, held = read(tmp_path / "train.jsonl"), read(tmp_path / "eval.jsonl")
    assert len(train) + len(held) == 21 * 21
    assert 100 <= len(held) <= 101

    def problems(rows: list[dict[str, Any]]) -> set[tuple[int, ...]]:
        return {tuple(sorted(int(w.rstrip("?")) for w in r["prompt"].split()[2:5:2])) for r in rows}

    assert not problems(train) & problems(held)
    assert all(number(Answer(text=f"It is {row['label']}.", label=row["label"])) == 1 for row in train)


@pytest.mark.long  # the package is an extra, which only the long tests install
def test_reasoning_gym_rows_are_scored_by_their_own_task(tmp_path: Path) -> None:
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    tasks.from_reasoning_gym(tmp_path, "chain_sum", train=60, held_out=20, **settings)
    train, held = read(tmp_path / "train.jsonl"), read(tmp_path / "eval.jsonl")
    assert (len(train), len(held)) == (60, 20)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    for row in train:
        assert reasoning_gym(Answer(text=row["label"], label=row["label"], metadata=row["metadata"])) == 1
        assert reasoning_gym(Answer(text="no idea", label=row["label"], metadata=row["metadata"])) == 0


def test_reversal_is_reproducible_and_shows_training_problems_only(tmp_path: Path) -> None:
    tasks.reversal(tmp_path / "a", digits=4, train=300, held_out=50)
    tasks.reversal(tmp_path / "b", digits=4, train=300, held_out=50)
    names = [
        "train.jsonl",
        "eval.jsonl",
        "demonstrations.jsonl",
        "preferences.jsonl",
        "eval_preferences.jsonl",
    ]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)
    train, held, shown, *pairs = (read(tmp_path / "a" / name) for name in names)
    for rows, of in zip(pairs, (train, held), strict=True):
        assert [(row["prompt"], row["chosen"]) for row in rows] == [
            (row["prompt"], row["label"]) for row in of
        ]
        assert all(row["rejected"] != row["chosen"] for row in rows)
        assert {len(row["rejected"]) for row in rows} == {3, 4, 5}
    assert {row["prompt"] for row in shown} == {row["prompt"] for row in train}
    assert not {row["prompt"] for row in shown} & {row["prompt"] for row in held}
    for row, demonstration in zip(train, shown, strict=True):
        digits = row["prompt"].removeprefix("reverse ").removesuffix("=")
        assert row["label"] == digits[::-1] == demonstration["response"]
        assert exact(Answer(text=f" {digits[::-1]}\n", label=row["label"])) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "settings"),
    [("gsm_symbolic", {}), ("fraction_simplification", {"min_value": 10**20, "max_value": 10**21})],
)
def test_reasoning_gym_entries_with_fractions_or_long_integers_are_scored(
    tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    tasks.from_reasoning_gym(tmp_path, name, train=150, held_out=2, **settings)
    rows = read(tmp_path / "train.jsonl")
    assert any("exact_number" in json.dumps(row) for row in rows)
    for row in rows:
        assert reasoning_gym(Answer(text=row["label"], label=row["label"], metadata=row["metadata"])) == 1
