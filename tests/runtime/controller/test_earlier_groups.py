"""A life trains on the groups that earlier lives left in the store, but not on those of other rows."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.runtime.sample_factory import make_group
from verst.runtime.controller.data_record import DataRecord, FileRecord
from verst.runtime.controller.earlier_groups import take_over
from verst.runtime.controller.stores import Stores
from verst.runtime.data.records import DataError
from verst.runtime.messages.sample import GroupMeta
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.journal import Journal
from verst.runtime.store.shard import Store

SHARDS = 2


class Members:
    """Stands for the controller's membership: it reaches the shards of one life without sockets."""

    def __init__(self, folder: RunFolder, generation: int) -> None:
        journals = [Journal(folder.samples / f"shard-{n}", generation) for n in range(SHARDS)]
        self.stores = [Store(journal, n) for n, journal in enumerate(journals)]

    def handle(self, actor: type, role: str, index: int, timeout: float | None = None) -> Store:
        return self.stores[index]

    def group(self, actor: type, role: str, timeout: float | None = None) -> Members:
        return self

    async def discard(self, ids: list[int]) -> list[None]:
        return [await store.discard(ids) for store in self.stores]


def rows(train: str, held_out: str = "e") -> DataRecord:
    files = {"data.train": train, "data.eval": held_out}
    return {name: FileRecord(path="p", bytes=1, rows=5, digest=digest) for name, digest in files.items()}


@pytest.fixture
def journalled(folder: RunFolder) -> RunFolder:
    """A run whose first life left four groups and a demonstration, and has no checkpoint."""
    folder.samples.mkdir(exist_ok=True)
    first = Members(folder, 0)
    assert asyncio.run(begin(first, folder, rows("old"))) == []

    async def generate() -> None:
        for id in (0, 1, 2, 3, -1):
            await first.stores[id % SHARDS].push(make_group(id, samples=1))

    asyncio.run(generate())
    return folder


async def begin(
    members: Members, folder: RunFolder, now: DataRecord, *, trained: bool = False, accept: bool = False
) -> list[GroupMeta]:
    stores = Stores(members)  # type: ignore[arg-type]
    return await take_over(stores, SHARDS, folder, now, trained=trained, accept=accept)


def resume(folder: RunFolder, generation: int, now: DataRecord, **how: bool) -> list[int]:
    """The groups that a life takes over."""
    return sorted(meta.id for meta in asyncio.run(begin(Members(folder, generation), folder, now, **how)))


def last_event(folder: RunFolder) -> str:
    return json.loads(folder.events.read_text().splitlines()[-1])["message"]


def test_groups_of_the_same_rows_are_kept_and_demonstrations_made_again(journalled: RunFolder) -> None:
    members = Members(journalled, 1)
    assert sorted(meta.id for meta in asyncio.run(begin(members, journalled, rows("old")))) == [0, 1, 2, 3]
    assert "dropped" not in last_event(journalled)
    assert sorted(id for store in members.stores for id in store._journal) == [0, 1, 2, 3]


@pytest.mark.parametrize("how", [{"trained": False}, {"trained": True, "accept": True}])
def test_groups_of_other_rows_are_dropped_and_it_is_said(journalled: RunFolder, how: dict[str, bool]) -> None:
    """They were scored with labels that have been corrected since, for instance."""
    assert resume(journalled, 1, rows("corrected"), **how) == []
    assert last_event(journalled).endswith(
        "4 groups that were generated from the old rows and not yet trained are dropped and made anew"
    )
    assert not any(journalled.samples.glob("*/*.journal"))
    assert resume(journalled, 2, rows("corrected"), trained=True) == [], "the new record"


def test_other_rows_of_an_evaluation_drop_nothing(journalled: RunFolder) -> None:
    assert resume(journalled, 1, rows("old", held_out="new")) == [0, 1, 2, 3]


def test_a_life_that_refuses_other_rows_drops_nothing(journalled: RunFolder) -> None:
    with pytest.raises(DataError, match=r"set data.accept_changes: true"):
        resume(journalled, 1, rows("corrected"), trained=True)
    assert resume(journalled, 2, rows("old"), trained=True) == [0, 1, 2, 3]


def test_a_life_that_ends_before_all_are_dropped_leaves_the_rest_to_the_next(
    journalled: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: Members, ids: list[int]) -> list[None]:
        raise OSError("a shard is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Members, "discard", lost)
        with pytest.raises(OSError, match="gone"):
            resume(journalled, 1, rows("corrected"))
    assert resume(journalled, 2, rows("corrected")) == []
    assert "4 groups" in last_event(journalled)
