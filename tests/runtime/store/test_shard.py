"""A store shard: what it acknowledges is what it holds."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.sample_factory import make_group
from tests.small_disk import SmallDisk
from verst.runtime.actors import ActorError, Member, create_keys
from verst.runtime.messages.apis import StoreApi
from verst.runtime.run.ending import CANNOT_WRITE
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.journal import Journal
from verst.runtime.store.shard import Store


def test_a_second_push_of_a_group_is_answered_with_what_the_first_one_was(tmp_path: Path) -> None:
    # An engine is lost after its push, another answers the same prompt in another way.
    store = Store(Journal(tmp_path / "shard-0", 0), shard=0)
    first, second = make_group(5, samples=4, response=5), make_group(5, samples=4, response=9)

    async def push_both() -> None:
        one = await store.push(first)
        assert await store.push(second) == one == first.meta(0)
        assert await store.inventory() == [one]

    asyncio.run(push_both())


def test_a_shard_whose_disk_is_full_refuses_the_group_keeps_the_others_and_ends_saying_why(
    small_disk: SmallDisk,
) -> None:
    small_disk.mount(512)
    folder = RunFolder(small_disk.path / "run")
    folder.create()
    folder.start_generation()
    create_keys(folder)
    folder.recipe.write_text("{}")
    argv = [sys.executable, "-m", "verst.runtime.store.shard", "--run", str(folder.root), "--index", "0"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=os.environ, cwd=folder.root)

    async def push() -> None:
        async with await Member.join(folder, "driver", 0, None) as driver:
            await driver.wait_for("store", 1, 30)
            store = driver.handle(StoreApi, "store", 0)
            await store.push(make_group(1))
            small_disk.fill()
            with pytest.raises(ActorError):
                await store.push(make_group(2, samples=8, response=400))

    try:
        within(60, push)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == CANNOT_WRITE
    assert "store shard 0 cannot journal a group: [Errno 28] No space left on device: " in stderr
    assert str(folder.samples / "shard-0") in stderr
    assert list(Journal(folder.samples / "shard-0", generation=1)) == [1]
