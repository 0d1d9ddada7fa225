"""Keeps records as columns, which are compact to send and are the form that a chart needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Value = float | int | str | None

_TEXT = 200
HISTOGRAM = "reward_histogram"  # of a step; the page gets it apart, for it is no column


class Columns:
    """Records of one kind, in the order of the file. If a record lacks a field, its column has None."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Value]] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record. A nested `seconds: {train: 1}` becomes the column `seconds/train`."""
        for name, value in flat(record):
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = [None] * self._length
            column.append(value)
        self._length += 1
        for column in self._columns.values():
            if len(column) < self._length:
                column.append(None)

    def names_of_numbers(self) -> list[str]:
        """The columns that have at least one number, in the order in which they came."""
        return [
            name for name, column in self._columns.items() if any(isinstance(v, int | float) for v in column)
        ]

    def column(self, name: str) -> list[Value]:
        """One column; all None if no record has the field."""
        return self._columns.get(name, [None] * self._length)

    def page(self, since: int, most: int) -> dict[str, Any]:
        """Returns up to `most` records from number `since` on. `next` is the number to go on with."""
        since = min(max(since, 0), self._length)
        end = min(since + most, self._length)
        columns = {} if since == end else {name: c[since:end] for name, c in self._columns.items()}
        return {"next": end, "more": end < self._length, "columns": columns}


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Yields the fields with plain values. A list becomes its length; the page needs no more of it."""
    for name, value in record.items():
        if name in ("kind", HISTOGRAM) and not prefix:
            continue
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield f"{prefix}{name}", len(value)
        else:
            yield f"{prefix}{name}", plain(value)


def plain(value: Any) -> Value:
    """Converts a value for JSON, with six significant digits. Non-finite numbers become "nan" or "inf"."""
    match value:
        case bool() | int():
            return int(value)
        case float() if not math.isfinite(value):
            return str(value)
        case float() if abs(value) >= 1e8:  # a point in time: to a hundredth of a second
            return round(value, 2)
        case float():
            return float(f"{value:.6g}")
        case str():
            return value[:_TEXT]
    return None
