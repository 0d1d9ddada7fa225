"""Reads the rows of data files. Errors name the file and line of the faulty row.

Which formats there are says `READABLE` in `files.py`. Rows are read a few at a time, whatever the size of a file, but
for a .json file that is one list: it is read as a whole.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from verst.runtime.data.files import DataError, files_of, kind_of
from verst.runtime.data.own_source import OwnSourceError, is_own_source, own_rows

__all__ = ["DataError", "Record", "column", "count_rows", "read_records", "size_of"]

Record = tuple[str, dict[str, Any]]  # the row's place ("train.jsonl:17"), and its columns
_ROWS_AT_ONCE = 1024  # of an Arrow or Parquet file


def read_records(path: Path | str) -> Iterator[Record]:
    """Yields the rows of `path` (`files.py` says what it may be), a few at a time.

    Raises DataError at the first faulty row.
    """
    if is_own_source(path):
        try:
            yield from own_rows(str(path))
        except OwnSourceError as error:
            raise DataError(str(error)) from error
        return
    for file in files_of(path):
        kind = kind_of(file)
        if kind in (".jsonl", ".json"):
            yield from _json_rows(file)
        else:
            yield from _table_rows(file, _parquet_batches if kind == ".parquet" else _arrow_batches)


def count_rows(path: Path | str) -> int | None:
    """The number of rows, for most formats without reading their contents; None for what cannot be read here."""
    if is_own_source(path):
        return None
    try:
        return sum(_count(file) for file in files_of(path))
    except (OSError, EOFError, ValueError):  # pyarrow's and our own errors are of these kinds
        return None


def size_of(path: Path | str) -> int:
    """The size of all files of a data path in bytes; 0 for a source of one's own."""
    return 0 if is_own_source(path) else sum(file.stat().st_size for file in files_of(path))


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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's contents, decompressed. Raises DataError if they cannot be."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield stream  # type: ignore[misc]
        elif path.suffix == ".zst":
            import pyarrow

            with pyarrow.input_stream(str(path), compression="zstd") as stream:
                yield io.BufferedReader(stream, 1 << 20)
        else:
            with path.open("rb") as stream:
                yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _json_rows(path: Path) -> Iterator[Record]:
    with _opened(path) as stream:
        if kind_of(path) == ".json" and stream.peek(64)[:64].lstrip()[:1] == b"[":  # type: ignore[attr-defined]
            yield from _json_list(path, stream.read())
        else:
            yield from _json_lines(path, stream)


def _json_list(path: Path, content: bytes) -> Iterator[Record]:
    try:
        rows = json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    escaped = b"\\ud" in content or b"\\uD" in content
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        _check_object(where, row, escaped)
        yield where, row


def _json_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        _check_object(where, row, escaped=b"\\ud" in line or b"\\uD" in line)
        yield where, row


def _check_object(where: str, row: Any, escaped: bool) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(row).__name__}")
    if escaped:
        _refuse_lone_surrogates(where, row)


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


def _table_rows(path: Path, read: Any) -> Iterator[Record]:
    """The rows of an Arrow or Parquet file, whose record batches `read` yields."""
    import pyarrow

    what = "Parquet" if read is _parquet_batches else "Arrow"
    number = 0
    batches = read(path)
    while True:
        try:
            batch = next(batches, None)
            rows = (
                [] if batch is None else batch.to_pylist(maps_as_pydicts="strict")
            )  # a map is an object, as in JSON
        except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: cannot be read as {what} after row {number}: {error}") from error
        if batch is None:
            return
        for row in rows:
            number += 1
            yield f"{path}: row {number}", row


def _parquet_batches(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    yield from parquet.ParquetFile(path).iter_batches(batch_size=_ROWS_AT_ONCE)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Slices of the record batches of an IPC file or, as the package `datasets` writes it, an IPC stream."""
    import pyarrow
    from pyarrow import ipc

    with pyarrow.memory_map(str(path)) as mapped:
        try:
            reader = ipc.open_file(mapped)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            batches = iter(ipc.open_stream(mapped))
        for batch in batches:
            for first in range(0, batch.num_rows, _ROWS_AT_ONCE):
                yield batch.slice(first, _ROWS_AT_ONCE)


def _count(path: Path) -> int:
    kind = kind_of(path)
    if kind == ".parquet":
        from pyarrow import parquet

        return int(parquet.ParquetFile(path).metadata.num_rows)
    if kind not in (".jsonl", ".json"):
        return sum(int(batch.num_rows) for batch in _arrow_batches(path))
    with _opened(path) as stream:
        if kind == ".json" and stream.peek(64)[:64].lstrip()[:1] == b"[":  # type: ignore[attr-defined]
            return len(json.loads(stream.read()))
        return sum(1 for line in stream if line.strip())
