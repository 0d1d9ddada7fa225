"""An app of actors for the tests: a ledger, workers that die when told to, and a main function that sees it all."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from verst.runtime.actors import Actor, Member, MemberLost


class Ledger(Actor):
    """Keeps what it is told, in order."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.file.touch()
        self.entries: list[str] = []

    async def write(self, entry: str) -> int:
        self.entries.append(entry)
        with self.file.open("a") as file:
            file.write(f"{entry}\n")
        return len(self.entries)

    async def read(self) -> list[str]:
        return self.entries


class Worker(Actor):
    """Squares, and dies."""

    async def square(self, x: int) -> int:
        return x * x

    async def pid(self) -> int:
        return os.getpid()

    async def die(self) -> None:
        print("told to die", flush=True)
        os._exit(3)


async def main(member: Member) -> None:
    """Uses all workers, kills one, and goes on with the one that comes in its place."""
    ledger = member.handle(Ledger, "ledger", 0)
    workers = member.group(Worker, "worker")
    await ledger.write(f"squares {await workers.square(7)}")
    first = await workers[1].pid()
    try:
        await workers[1].die()
    except MemberLost as lost:
        await ledger.write(f"lost {lost.member}")
    await ledger.write(f"another {await new_life(member, first) != first}")


async def new_life(member: Member, old: int) -> int:
    """The pid of the worker that was started again."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if (pid := await member.handle(Worker, "worker", 1, timeout=5).pid()) != old:
                return pid
        except MemberLost:
            await asyncio.sleep(0.2)
    raise TimeoutError("no worker came back")


async def until_stopped(member: Member) -> None:
    """Notes each life of the app, and never ends by itself."""
    await member.handle(Ledger, "ledger", 0).write(f"life {member.info.generation}")
    await asyncio.Event().wait()
