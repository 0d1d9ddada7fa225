"""The journal keeps what it acknowledged, through crashes at any byte, and gives disk space back."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from tests.runtime.sample_factory import assert_equal_groups, make_group
from verst.runtime.store.journal import Journal


def test_groups_read_back_equal_in_this_life_and_the_next(tmp_path):
    journal = Journal(tmp_path, generation=0)
    groups = [make_group(i) for i in (5, 1, 9)]
    for group in groups:
        journal.append(group)
    for group in groups:
        assert_equal_groups(journal.read(group.id), group)
    again = Journal(tmp_path, generation=1)
    assert list(again) == [1, 5, 9]
    assert_equal_groups(again.read(9), groups[2])


def test_a_group_pushed_twice_is_stored_once(tmp_path):
    journal = Journal(tmp_path, generation=0)
    journal.append(make_group(1))
    size = sum(f.stat().st_size for f in tmp_path.iterdir())
    journal.append(make_group(1))
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) == size


def test_a_crash_at_any_byte_of_the_last_record_loses_only_that_record(tmp_path):
    whole = tmp_path / "whole"
    journal = Journal(whole, generation=0)
    for i in range(3):
        journal.append(make_group(i, samples=1))
    segment = next(whole.iterdir())
    data = segment.read_bytes()
    last = journal._places[2].offset
    for cut in [last, last + 1, last + 11, last + 12, last + 30, len(data) - 1]:
        torn = tmp_path / f"cut-{cut}"
        torn.mkdir()
        (torn / segment.name).write_bytes(data[:cut])
        after = Journal(torn, generation=1)
        assert list(after) == [0, 1]
        assert bool(after.torn) == (cut > last)
        after.append(make_group(2, samples=1))
        assert list(Journal(torn, generation=2)) == [0, 1, 2]


def test_a_flipped_bit_is_noticed(tmp_path):
    journal = Journal(tmp_path, generation=0)
    journal.append(make_group(1))
    segment = next(tmp_path.iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 4
    segment.write_bytes(data)
    with pytest.raises(ValueError, match=r"group 1 .* damaged"):
        journal.read(1)
    assert list(Journal(tmp_path, generation=1)) == []


def test_segments_of_earlier_lives_are_deleted_once_all_their_groups_are_discarded(tmp_path):
    first = Journal(tmp_path, generation=0)
    first.append(make_group(0))
    first.append(make_group(1))
    second = Journal(tmp_path, generation=1)
    second.append(make_group(2))
    second.discard([0])
    assert len(list(tmp_path.iterdir())) == 2
    second.discard([1, 77])
    assert [f.name for f in tmp_path.iterdir()] == ["000001-000000.journal"]
    assert list(second) == [2]
    with pytest.raises(KeyError):
        second.read(0)


def test_a_group_that_does_not_fit_on_the_disk_leaves_the_others_and_can_be_pushed_again(
    small_disk,
):
    small_disk.mount(256)
    folder = small_disk.path / "shard-0"
    journal = Journal(folder, generation=0)
    journal.append(make_group(0))
    hog = small_disk.fill()
    with hog.open("r+b") as file:  # room for a part of the record
        file.truncate(hog.stat().st_size - 4096)
    held = sum(f.stat().st_size for f in folder.iterdir())
    with pytest.raises(OSError, match=r"No space left on device: .*shard-0/000000-000000\.journal"):
        journal.append(make_group(1, samples=8, response=400))
    assert list(journal) == [0]
    assert sum(f.stat().st_size for f in folder.iterdir()) == held  # the disk is no fuller than before
    hog.unlink()
    for i in (1, 2):
        journal.append(make_group(i, samples=8, response=400))
    assert_equal_groups(journal.read(1), make_group(1, samples=8, response=400))
    after = Journal(folder, generation=1)
    assert list(after) == [0, 1, 2]
    assert after.torn == []


def test_nothing_is_written_behind_a_record_that_could_not_be_taken_back(tmp_path, monkeypatch):
    journal = Journal(tmp_path, generation=0)
    journal.append(make_group(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = next(tmp_path.iterdir()).stat().st_size + 100
    monkeypatch.setattr(os, "ftruncate", _refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            journal.append(make_group(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.append(make_group(1))
    after = Journal(tmp_path, generation=1)
    assert list(after) == [0, 1]
    assert len(after.torn) == 1


def _refused(fd, length):
    raise OSError(errno.EIO, "Input/output error")


def test_a_segment_never_takes_the_name_of_one_that_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "verst.runtime.store.journal._SEGMENT_BYTES", 1
    )  # each record in a segment of its own
    journal = Journal(tmp_path, generation=0)
    for i in range(3):
        journal.append(make_group(i))
        journal.discard([i - 1])
    again = Journal(tmp_path, generation=0)
    again.append(make_group(3))
    assert list(Journal(tmp_path, generation=1)) == [2, 3]
