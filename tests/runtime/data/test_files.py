"""The same rows come out of every format, in order; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from verst.runtime.data.files import DataError, files_of
from verst.runtime.data.records import count_rows, read_records, size_of

ROWS = [{"prompt": f"{n} + 1", "label": n + 1, "info": {"n": [n, n]}} for n in range(3000)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def arrow_file(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1300)


def arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1300)


def zstd(path: Path, rows: list[dict[str, Any]]) -> None:
    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(lines(rows))


Write = Callable[[Path, list[dict[str, Any]]], Any]
FORMATS: dict[str, Write] = {
    "rows.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "rows.json": lambda path, rows: path.write_text("\n " + json.dumps(rows, indent=1)),
    "lines.json": lambda path, rows: path.write_bytes(lines(rows)),
    "rows.jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(lines(rows))),
    "list.json.gz": lambda path, rows: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
    "rows.jsonl.zst": zstd,
    "rows.parquet": lambda path, rows: parquet.write_table(pyarrow.Table.from_pylist(rows), path),
    "rows.feather": lambda path, rows: feather.write_feather(pyarrow.Table.from_pylist(rows), str(path)),
    "file.arrow": arrow_file,
    "stream.arrow": arrow_stream,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    FORMATS[name](path, ROWS)
    found = list(read_records(path))
    assert [row for _, row in found] == ROWS
    assert len({where for where, _ in found}) == len(ROWS)
    assert found[-1][0].startswith(str(path))
    assert count_rows(path) == len(ROWS)
    assert size_of(path) == path.stat().st_size


def test_shards_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, part in {"b.parquet": ROWS[20:30], "a.jsonl": ROWS[:10], "a2.jsonl.zst": ROWS[10:20]}.items():
        FORMATS[f"rows.{name.partition('.')[2]}"](tmp_path / name, part)
    (tmp_path / "README.md").write_text("rows")
    (tmp_path / "_SUCCESS").write_text("")
    assert [row for _, row in read_records(tmp_path)] == ROWS[:30]
    assert [row for _, row in read_records(f"{tmp_path}/a*")] == ROWS[:20]
    assert [row for _, row in read_records(f"{tmp_path}/[b].parquet")] == ROWS[20:30]
    assert (count_rows(tmp_path), count_rows(tmp_path / "a*")) == (30, 20)
    assert size_of(tmp_path) == sum(file.stat().st_size for file in tmp_path.glob("[ab]*"))
    (tmp_path / "notes.csv").write_text("prompt\n")
    with pytest.raises(DataError, match=r"notes\.csv: the file name must end in \.jsonl"):
        files_of(tmp_path)


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    # It is in other order than it was made, and in several files: the files alone must say so.
    whole.shuffle(seed=3).save_to_disk(tmp_path / "shuffled", num_shards=3)
    expected = list(whole.shuffle(seed=3))
    assert [row for _, row in read_records(tmp_path / "shuffled")] == expected
    assert count_rows(tmp_path / "shuffled") == len(ROWS)
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "splits")
    with pytest.raises(
        DataError, match=rf"name one of them, {tmp_path}/splits/train or {tmp_path}/splits/test"
    ):
        files_of(tmp_path / "splits")
    assert [row for _, row in read_records(tmp_path / "splits/test")] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read: Not a gzipped file"),
        ("b.jsonl.gz", gzip.compress(lines(ROWS))[:-9], r"b\.jsonl\.gz: cannot be read: "),
        (
            "b2.jsonl.gz",
            gzip.compress(lines(ROWS))[:10] + b"\xff" * 100,
            r"b2\.jsonl\.gz: cannot be read: Error -3",
        ),
        ("c.jsonl.zst", b"no zstd, but some bytes", r"c\.jsonl\.zst: cannot be read: "),
        ("d.arrow", b"no arrow, but some bytes", r"d\.arrow: cannot be read as Arrow after row 0: "),
        ("e.json", b'[{"a": 1}, 3]', r"e\.json: row 2: a JSON object is needed, not int"),
        ("f.json", b'[{"a": 1, "a": 2}]', r"f\.json: not valid JSON: the key 'a' is there twice"),
        ("g.json", rb'[{"a": "\ud800"}]', r"g\.json: row 1: 'a' holds \\ud800"),
        ("h.parquet.gz", b"", r"h\.parquet\.gz: the file name must end in"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_records(tmp_path / name))
    count_rows(tmp_path / name)


def test_an_empty_folder_and_a_pattern_without_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(DataError, match="the folder has no data files; it has folders: inner"):
        files_of(tmp_path)
    with pytest.raises(DataError, match="no file matches this pattern"):
        files_of(f"{tmp_path}/*.jsonl")
