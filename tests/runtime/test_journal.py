"""The journal keeps what it acknowledged, through crashes at any byte, and gives disk space back."""

from __future__ import annotations

import pytest

from tests.runtime.sample_factory import assert_equal_groups, make_group
from verst.runtime.journal import Journal


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
