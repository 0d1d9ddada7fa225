"""Rows that are computed, in place of a file: `data: {train: {path: "own_rows:Products"}}`."""

from typing import Any


class Products:
    """The products of two numbers from 0 to 99. The same row number must always give the same row."""

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, row: int) -> dict[str, Any]:
        a, b = divmod(row, 100)
        return {"prompt": f"{a} * {b} = ", "label": str(a * b), "level": len(str(a * b))}
