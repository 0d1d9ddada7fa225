"""An actor that writes down each call before it answers: `python chaos_actor.py RUN_FOLDER INDEX HOST JOURNALS`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from verst.runtime.actors import Actor, Member
from verst.runtime.run.folder import RunFolder

LEASE_S = 10.0


class Journalist(Actor, concurrency=4, backlog=1000):
    """`do` is executed when its line is in the journal."""

    def __init__(self, journal: Path) -> None:
        self._fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def do(self, call: int, seconds: float) -> int:
        os.write(self._fd, b"%d\n" % call)
        await asyncio.sleep(seconds)
        return call


async def serve(root: str, index: int, host: str, journals: str) -> None:
    """Serves until the membership ends: an actor that was cut off for its lease leaves, and is started again."""
    actor = Journalist(Path(journals) / f"{index}-{os.getpid()}")
    member = await Member.join(RunFolder(root), "chaos", index, actor, host, lease=LEASE_S)
    await member.wait_left()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
