"""Ten times the members, the same file-system calls for each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo
from tests.runtime.actors.test_following import counted, listings
from verst.runtime.actors import Member, create_keys
from verst.runtime.run.folder import RunFolder

_LEASE_S = 6.0
_SECONDS = 8.0


async def calls_of(root: Path, workers: int) -> Counter[str]:
    """What `workers` members that keep calling echo-0 ask of the file system in some seconds, all together."""
    folder = RunFolder(root)
    folder.create()
    folder.start_generation()
    create_keys(folder)
    echo = await Member.join(folder, "echo", 0, Echo(), lease=_LEASE_S)
    members = [await Member.join(folder, "worker", n, None, lease=_LEASE_S) for n in range(workers)]

    async def work(member: Member) -> None:
        handle = member.handle(Echo, "echo", 0)
        while True:
            await handle.count()
            await asyncio.sleep(1.0)

    working = [asyncio.create_task(work(member)) for member in members]
    await asyncio.sleep(3.0)
    with counted(folder) as calls:
        await asyncio.sleep(_SECONDS)
    for task in working:
        assert not task.done(), task.exception()
        task.cancel()
    for member in [*members, echo]:
        await member.leave()
    return calls


@pytest.mark.long
def test_file_system_calls_per_member_do_not_grow_with_the_members(tmp_path: Path) -> None:
    async def work() -> None:
        few = await calls_of(tmp_path / "few", 20)
        many = await calls_of(tmp_path / "many", 200)
        assert listings(few) == listings(many) == 0
        for name in ("open", "utime", "stat"):
            assert many[name] / 200 <= few[name] / 20 * 1.3 + 1, (name, few, many)
        assert many["echo-0.json"] / 200 <= _SECONDS / (_LEASE_S / 3) + 1

    within(200, work)
