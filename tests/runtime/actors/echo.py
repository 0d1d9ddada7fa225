"""An actor for the tests, and a process that serves it: `python echo.py RUN_FOLDER INDEX LEASE_SECONDS`."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import numpy as np

from verst.runtime.actors import Actor, Member
from verst.runtime.run.folder import RunFolder


class Scores(msgspec.Struct):
    """A struct with arrays, as samples are."""

    name: str
    values: np.ndarray
    counts: dict[str, int] = {}


class Echo(Actor):
    """Answers, counts, raises, sleeps."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.began = asyncio.Event()

    async def scale(self, scores: Scores, factor: int = 2, *, name: str = "") -> Scores:
        return Scores(
            name or scores.name, scores.values * factor, {key: n + 1 for key, n in scores.counts.items()}
        )

    async def count(self) -> int:
        self.calls += 1
        return self.calls

    async def fail(self, text: str) -> None:
        raise LookupError(text)

    async def sleep(self, seconds: float) -> str:
        self.began.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "slept"

    async def ticks(self, every: float) -> AsyncIterator[int]:
        for n in itertools.count():
            yield n
            await asyncio.sleep(every)

    async def block_the_loop(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - what no actor should do

    async def cancellations(self) -> int:
        return self.cancelled

    async def unsendable(self) -> object:
        return object()

    async def wrong(self) -> int:
        return "not a number"  # type: ignore[return-value]

    async def _private(self) -> int:
        return 1


async def serve(root: str, index: int, lease: float) -> None:
    """Serves until the membership ends."""
    member = await Member.join(RunFolder(root), "echo", index, Echo(), lease=lease)
    await member.wait_left()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
