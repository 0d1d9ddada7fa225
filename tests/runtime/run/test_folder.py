"""Small files of a run folder on a disk that becomes full: whole or not at all, and the error says where."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.small_disk import SmallDisk
from verst.runtime.run.ending import RunEnd, last_end, write_end
from verst.runtime.run.folder import SPARE_BYTES, RunFolder, append_line, write_atomically


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writes beyond `size` fail as on a full disk: after a part is written. Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def folder(small_disk: SmallDisk) -> RunFolder:
    small_disk.mount(256)
    run = RunFolder(small_disk.path / "run")
    run.create()
    run.start_generation()
    return run


def test_a_line_that_does_not_fit_is_taken_back_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"n": 0})
    with files_limited_to(20), pytest.raises(OSError, match=r"events\.jsonl") as failure:
        append_line(path, {"text": "x" * 50})
    assert failure.value.errno == errno.EFBIG
    assert path.read_text() == '{"n":0}\n'
    append_line(path, {"n": 1})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1]


def test_a_line_behind_a_torn_one_stands_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"n":0}\n{"n":')  # the node crashed
    append_line(path, {"n": 1})
    assert path.read_text() == '{"n":0}\n{"n":\n{"n":1}\n'


def test_a_file_that_does_not_fit_is_named_and_leaves_the_old_one_and_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_atomically(path, b"old")
    with files_limited_to(10), pytest.raises(OSError, match=r"plan\.json"):
        write_atomically(path, b"x" * 50)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert path.read_bytes() == b"old"


def test_the_end_is_told_on_a_full_disk(folder: RunFolder, small_disk: SmallDisk) -> None:
    small_disk.fill()
    assert folder.write_fault() == f"No space left on device: {folder.root}"
    end = RunEnd(1, "it failed: " + "ü" * SPARE_BYTES, 0, resumes=True)
    write_end(folder, end)
    told = last_end(folder)
    assert told is not None
    assert (told.code, told.generation, told.resumes) == (1, 0, True)
    assert told.reason.startswith("it failed: üüü")
    assert write_end(folder, RunEnd(0, "too late", 0)) == told
    assert sorted(p.name for p in folder.root.glob(".*")) == []


def test_each_generation_has_space_for_its_end_again(folder: RunFolder, small_disk: SmallDisk) -> None:
    hog = small_disk.fill()
    write_end(folder, RunEnd(1, "full", 0))
    with pytest.raises(OSError, match=r"No space left on device.*\.ended\.spare"):
        folder.start_generation()
    assert folder.generation == 0
    hog.unlink()
    assert folder.start_generation() == 1
    small_disk.fill()
    write_end(folder, RunEnd(1, "full again", 1))
    assert last_end(folder) == RunEnd(1, "full again", 1)


def test_an_unwritable_folder_is_named(folder: RunFolder, small_disk: SmallDisk) -> None:
    small_disk.read_only()
    assert folder.write_fault() == f"Read-only file system: {folder.root}"
    with pytest.raises(OSError, match=rf"Read-only file system: .*{os.sep}run{os.sep}"):
        write_end(folder, RunEnd(1, "it failed", 0))
    with pytest.raises(OSError, match=r"Read-only file system: .*events\.jsonl"):
        folder.event("failed", message="it failed")
