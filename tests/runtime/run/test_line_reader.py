"""A growing file is read line by line, whatever crashes and long lines are in it."""

from __future__ import annotations

from pathlib import Path

from verst.runtime.run.folder import append_line
from verst.runtime.run.line_reader import LineReader


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    reader = LineReader(path)
    assert reader.lines() == []
    path.write_text("one\ntw")
    assert reader.lines() == [b"one"]
    with path.open("a") as stream:
        stream.write("o\nthree\n")
    assert reader.lines() == [b"two", b"three"]


def test_a_line_that_a_crash_tore_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"n":0}\n{"n":')
    reader = LineReader(path)
    assert reader.records() == [{"n": 0}]
    append_line(path, {"n": 1})
    assert reader.records() == [{"n": 1}]


def test_a_line_longer_than_a_bite_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    reader = LineReader(path, bite=100)
    assert reader.lines() == []
    path.write_bytes(b"one\n" + b"x" * 1000 + b"\ntwo\n")
    seen: list[bytes] = []
    for _ in range(30):
        seen += reader.lines()
    assert seen == [b"one", b"two"]
    assert reader.behind == 0


def test_all_records_come_at_once_however_many_bites_they_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for number in range(100):
        append_line(path, {"n": number, "long": "x" * (150 if number == 50 else 1)})
    reader = LineReader(path, bite=100)
    assert [record["n"] for record in reader.records()] == [n for n in range(100) if n != 50]
    append_line(path, {"n": 100})
    assert [record["n"] for record in reader.records()] == [100]


def test_a_file_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"n": 0})
    reader = LineReader(path)
    assert reader.records() == [{"n": 0}]
    append_line(tmp_path / "new", {"n": 1})
    (tmp_path / "new").rename(path)
    assert reader.records() == [{"n": 1}]
    assert reader.epoch == 1
