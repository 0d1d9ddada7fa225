"""Reads the rows of JSONL and Parquet files. Errors name the file and line of the faulty row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = tuple[str, dict[str, Any]]  # the row's place ("train.jsonl:17"), and its columns


class DataError(ValueError):
    """A data file is missing or faulty, or lacks something that the recipe needs."""


def read_records(path: Path | str) -> Iterator[Record]:
    """Yields the rows of `path`, a .jsonl, .json (also one object a line) or .parquet file.

    Raises DataError at the first faulty row.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.suffix in (".jsonl", ".json"):
        yield from _json_lines(path)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise DataError(f"{path}: the file name must end in .jsonl, .json or .parquet")


def column(record: Record, name: str) -> Any:
    """Returns a column's value. Raises DataError with the row's columns if it is missing."""
    where, row = record
    if name not in row:
        raise DataError(f"{where}: no column {name!r}; it has {', '.join(map(repr, row))}")
    return row[name]


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a JSON object is needed, not {type(row).__name__}")
            yield where, row


def _parquet_rows(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet after row {number}: {error}") from error
