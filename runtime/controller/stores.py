"""Calls the store's shards: rows of data files are spread over them, and groups are discarded on all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import batched

from verst.runtime.actors import Member, MemberLost
from verst.runtime.messages.apis import StoreApi
from verst.runtime.messages.sample import Group, GroupMeta

_AT_ONCE = 64  # groups that are pushed side by side
_CALL_S = 60.0  # for the shards to discard groups
_INVENTORY_S = 300.0  # for a shard to read its journal


class Stores:
    """All shards of the store that are present."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._all = member.group(StoreApi, "store", timeout=_CALL_S)

    async def inventory(self, shards: int) -> list[GroupMeta]:
        """All groups that the `shards` of the run have journalled and not discarded."""
        metas: list[GroupMeta] = []
        for shard in range(shards):
            store = self._member.handle(StoreApi, "store", shard, timeout=_INVENTORY_S)
            metas += await store.inventory()
        return metas

    async def recording(self, shards: int) -> list[GroupMeta]:
        """All groups of the recording that the `shards` of the run serve."""
        metas: list[GroupMeta] = []
        for shard in range(shards):
            store = self._member.handle(StoreApi, "store", shard, timeout=_INVENTORY_S)
            metas += await store.recording()
        return metas

    async def push(self, groups: Sequence[Group]) -> list[GroupMeta]:
        """Journals the rows of stages without engines (groups numbered below zero). A number determines the shard."""
        shards = self._member.members("store")
        metas: list[GroupMeta] = []
        for some in batched(groups, _AT_ONCE):
            calls = [
                self._member.handle(StoreApi, "store", shards[-group.id % len(shards)].index).push(group)
                for group in some
            ]
            metas += await asyncio.gather(*calls)
        return metas

    async def discard(self, ids: list[int]) -> None:
        """Discards groups on all shards. Raises MemberLost if a shard is gone."""
        for answer in await self._all.discard(ids):
            if isinstance(answer, MemberLost):
                raise answer
