"""A store shard: what it acknowledges is what it holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.runtime.sample_factory import make_group
from verst.runtime.journal import Journal
from verst.runtime.store import Store


def test_a_second_push_of_a_group_is_answered_with_what_the_first_one_was(tmp_path: Path) -> None:
    # An engine is lost after its push, another answers the same prompt in another way.
    store = Store(Journal(tmp_path / "shard-0", 0), shard=0)
    first, second = make_group(5, samples=4, response=5), make_group(5, samples=4, response=9)

    async def push_both() -> None:
        one = await store.push(first)
        assert await store.push(second) == one == first.meta(0)
        assert await store.inventory() == [one]

    asyncio.run(push_both())
