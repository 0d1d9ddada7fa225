"""A recording has every group that its steps trained on, from all lives and shards, and says what it lacks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tests.runtime.sample_factory import assert_equal_groups, make_group
from verst.runtime.controller.recorded import read_note, steps_to_train, write_note
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.journal import Journal
from verst.runtime.store.recording import (
    Recorded,
    StepList,
    first_group,
    missing_steps,
    recorded_steps,
    shard_folders,
)
from verst.runtime.store.shard import Store


def record(samples: Path) -> dict[int, object]:
    """Two shards and two lives; the first life's groups are covered by a checkpoint."""
    groups = {id: make_group(id) for id in range(6)}
    for shard in (0, 1):
        first = Journal(samples / f"shard-{shard}", generation=0, keep=True)
        first.append(make_group(-1 - shard))  # a demonstration
        for id in (shard, shard + 2):
            first.append(groups[id])
        first.close()
        second = Journal(samples / f"shard-{shard}", generation=1, keep=True)
        second.append(groups[shard + 4])
        second.discard([-1 - shard, shard, shard + 2])
        assert list(second) == [shard + 4]
        second.close()
    return groups


def test_discarded_groups_are_kept_beside_those_that_are_not(tmp_path):
    groups = record(tmp_path)
    kept = Recorded(shard_folders(tmp_path))
    assert list(kept) == list(range(6))
    for id, group in groups.items():
        assert_equal_groups(kept.read(id), group)
    assert list(Recorded(shard_folders(tmp_path)[1::2])) == [1, 3, 5], "the second of two shards"
    assert [p.name for p in (tmp_path / "shard-0/kept").iterdir()] == ["000000-000000.journal"]
    assert first_group(tmp_path).id in groups


def test_a_life_that_starts_again_writes_no_segment_over_a_kept_one(tmp_path):
    journal = Journal(tmp_path, generation=0, keep=True)
    journal.append(make_group(1))
    journal.close()
    Journal(tmp_path, generation=1, keep=True).discard([1])
    again = Journal(tmp_path, generation=0, keep=True)
    again.append(make_group(2))
    assert sorted(path.name for path in tmp_path.rglob("*.journal")) == [
        "000000-000000.journal",
        "000000-000001.journal",
    ]


def test_without_keep_nothing_is_left(tmp_path):
    journal = Journal(tmp_path, generation=0)
    journal.append(make_group(1))
    journal.close()
    Journal(tmp_path, generation=1).discard([1])
    assert list(tmp_path.rglob("*")) == []


def test_a_shard_serves_the_groups_of_a_recording_beside_its_own(tmp_path):
    record(tmp_path / "theirs")
    journal = Journal(tmp_path / "own", generation=0)
    store = Store(journal, 3, Recorded(shard_folders(tmp_path / "theirs")))

    async def ask() -> None:
        await store.push(make_group(-1))
        assert [meta.id for meta in await store.inventory()] == [-1]
        metas = await store.recording()
        assert [(meta.id, meta.shard) for meta in metas] == [(id, 3) for id in range(6)]
        assert [group.id for group in await store.fetch([4, -1, 0])] == [4, -1, 0]

    asyncio.run(ask())


def test_a_step_that_was_trained_again_takes_the_place_of_the_first_and_of_those_that_followed_it(tmp_path):
    steps = StepList(tmp_path)
    one, two, three = (make_group(id).meta(0) for id in (1, 2, 3))
    steps.begins(6, [two])
    steps.begins(7, [two, one])
    steps.begins(8, [three])
    steps.begins(9, [three])
    steps.begins(7, [one, msgspec.structs.replace(three, common_version=5)])
    assert recorded_steps(tmp_path) == {6: {2: None}, 7: {1: None, 3: 5}}
    steps.begins(8, [two])
    assert recorded_steps(tmp_path)[8] == {2: None}
    assert list(recorded_steps(tmp_path)[7]) == [1, 3]


def test_versions_of_other_weights_are_marked_and_a_missing_group_is_told(tmp_path):
    folder = RunFolder(tmp_path)
    folder.create()
    metas = [make_group(id).meta(1) for id in (1, 3)]
    StepList(folder.samples).begins(7, [metas[0], msgspec.structs.replace(metas[1], common_version=5)])
    same = steps_to_train(folder.root, metas, same_weights=True)
    assert [(m.id, m.shard, m.common_version) for m in same[7]] == [(1, 1, None), (3, 1, 5)]
    other = steps_to_train(folder.root, metas, same_weights=False)
    assert [m.common_version for m in other[7]] == [-1, -1]
    with pytest.raises(ValueError, match=r"lacks the groups \[3\] of step 7"):
        steps_to_train(folder.root, metas[:1], same_weights=True)
    for same_weights in (True, False):
        write_note(folder, same_weights)
        assert read_note(folder) is same_weights


def test_what_a_recording_lacks():
    assert "ran without `record.keep: true`" in (missing_steps({}, 1, 2) or "")
    assert missing_steps({5: (), 6: (), 7: ()}, 5, 7) is None
    found = missing_steps({5: (), 7: ()}, 5, 8)
    assert found == "it has the steps 5 to 7, and this run needs 5 to 8; step 6 is missing"
