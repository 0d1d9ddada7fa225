"""The small programs of examples/ do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from verst.runtime.data.records import read_records

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_rows_that_are_computed() -> None:
    rows = [row for _, row in read_records("own_rows:Products")]
    assert len(rows) == 10_000
    assert rows[1203] == {"prompt": "12 * 3 = ", "label": "36", "level": 2}
