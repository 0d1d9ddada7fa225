"""Reads the rows of JSONL and Parquet files. Errors name the file and line of the faulty row."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Record = tuple[str, dict[str, Any]]  # the row's place ("train.jsonl:17"), and its columns
_ROWS_AT_ONCE = 1024  # of a Parquet file


class DataError(ValueError):
    """A data file is missing or faulty, or lacks something that the recipe needs."""


def read_records(path: Path | str) -> Iterator[Record]:
    """Yields the rows of `path`, a .jsonl, .json (also one object a line) or .parquet file, a few at a time.

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


def count_rows(path: Path) -> int | None:
    """The number of rows of a data file, without reading their contents; None for a file that cannot be read."""
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return int(parquet.ParquetFile(path).metadata.num_rows)
        with path.open("rb") as stream:
            return sum(1 for line in stream if line.strip())
    except (OSError, ValueError):  # pyarrow's errors are of these kinds
        return None


def column(record: Record, name: str) -> Any:
    """Returns a column's value. `name` may be a path into objects, such as `reward_model.ground_truth`.

    A column whose own name has the dot comes first. Raises DataError, with the names that are there, if it is missing.
    """
    where, row = record
    if name in row:
        return row[name]
    value: Any = row
    walked: list[str] = []
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            _missing(where, name, ".".join(walked), value)
        value = value[part]
        walked.append(part)
    return value


def _missing(where: str, name: str, walked: str, value: Any) -> NoReturn:
    if not walked:
        raise DataError(f"{where}: no column {name!r}; it has {', '.join(map(repr, value))}")
    found = f"has {', '.join(map(repr, value))}" if isinstance(value, dict) else f"is {str(value)[:80]!r}"
    raise DataError(f"{where}: there is no {name!r}: {walked!r} {found}")


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where}: a JSON object is needed, not {type(row).__name__}")
            if b"\\ud" in line or b"\\uD" in line:
                _refuse_lone_surrogates(where, row)
            yield where, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return made


def _refuse_lone_surrogates(where: str, row: dict[str, Any]) -> None:
    """Refuses text that is no Unicode: JSON can escape half of a surrogate pair, which no tokenizer takes."""
    for name, value in row.items():
        try:
            json.dumps({name: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise DataError(
                f"{where}: {name!a} holds {half}, one half of a surrogate pair, which is not a character: "
                "write the whole character, or leave it out"
            ) from error


def _parquet_rows(path: Path) -> Iterator[Record]:
    number = 0
    for rows in _parquet_batches(path):
        for row in rows:
            number += 1
            yield f"{path}: row {number}", row


def _parquet_batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_ROWS_AT_ONCE):
            rows = batch.to_pylist(maps_as_pydicts="strict")  # a map is an object, as in JSON
            yield rows
            number += len(rows)
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as Parquet after row {number}: {error}") from error
