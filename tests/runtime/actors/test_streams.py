"""What a stream and an actor with a limit promise: every item in order, no more work ahead than is allowed."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo
from tests.runtime.actors.test_calls import joined
from verst.runtime.actors import Actor, CallRefused, CallTimeout, Member, MemberLost, RemoteError
from verst.runtime.actors.streams import WINDOW
from verst.runtime.run.folder import RunFolder


class Source(Actor):
    """Streams of every ending."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = asyncio.Event()

    async def numbers(self, n: int, fail_at: int = -1) -> AsyncIterator[np.ndarray]:
        try:
            for i in range(n):
                if i == fail_at:
                    raise LookupError(f"no item {i}")
                self.made += 1
                yield np.full(3, i)
        finally:
            self.closed.set()

    async def never(self) -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(60)

    async def wrong(self) -> AsyncIterator[int]:
        yield "text"  # type: ignore[misc]


class OneAtATime(Actor, concurrency=1, backlog=20):
    """Notes when its calls begin and end."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def work(self, name: int) -> int:
        self.seen.append(f"{name} begins")
        await asyncio.sleep(0.01)
        self.seen.append(f"{name} ends")
        return name


def with_source(test: Callable[[Member, Source], object]) -> Callable[[RunFolder], None]:
    def run(folder: RunFolder) -> None:
        async def work() -> None:
            source = Source()
            async with joined(folder, ("source", 0, source), ("driver", 0, None)) as (_, driver):
                await test(driver, source)  # type: ignore[misc]

        within(20, work)

    return run


async def take(
    stream: AsyncIterator[Any], into: list[int], each: Callable[[int], None] = lambda n: None
) -> None:
    """All items into a list, so that those before an error can be looked at."""
    async for item in stream:
        into.append(int(np.ravel(item)[0]))
        each(into[-1])


def test_every_item_arrives_once_and_in_order(folder: RunFolder) -> None:
    async def check(driver: Member, source: Source) -> None:
        stream = driver.handle(Source, "source", 0).numbers(1000)
        assert [int(item[0]) async for item in stream] == list(range(1000))
        assert source.closed.is_set()

    with_source(check)(folder)


def test_a_slow_caller_holds_the_generator_back(folder: RunFolder) -> None:
    async def check(driver: Member, source: Source) -> None:
        taken = 0
        async for _ in driver.handle(Source, "source", 0).numbers(500):
            taken += 1
            if taken in (1, 100, 300):
                await asyncio.sleep(0.3)
                assert source.made <= taken + WINDOW + 1
            if taken == 400:
                break
        await source.closed.wait()  # leaving the loop ended the generator over there
        assert source.made < 500

    with_source(check)(folder)


def test_an_error_comes_after_the_items_before_it(folder: RunFolder) -> None:
    async def check(driver: Member, source: Source) -> None:
        got: list[int] = []
        with pytest.raises(RemoteError, match="no item 50"):
            await take(driver.handle(Source, "source", 0).numbers(100, fail_at=50), got)
        assert got == list(range(50))
        with pytest.raises(CallRefused, match=r"source-0\.wrong: its result is not"):
            await take(driver.handle(Source, "source", 0).wrong(), [])

    with_source(check)(folder)


def test_the_deadline_is_the_whole_streams(folder: RunFolder) -> None:
    async def check(driver: Member, source: Source) -> None:
        got: list[int] = []
        with pytest.raises(CallTimeout, match=r"source-0\.never"):
            await take(driver.handle(Source, "source", 0, timeout=0.5).never(), got)
        assert got == [1]

    with_source(check)(folder)


def test_a_stream_says_that_its_member_has_died(
    folder: RunFolder, start_echo: Callable[..., subprocess.Popen[bytes]]
) -> None:
    async def check() -> None:
        process = start_echo(0)
        async with joined(folder, ("driver", 0, None)) as (driver,):
            await driver.wait_for("echo", 1, timeout=15)
            ticks = driver.handle(Echo, "echo", 0).ticks(0.01)
            with pytest.raises(MemberLost, match="echo-0"):
                await take(ticks, [], lambda n: process.kill() if n == 5 else None)

    within(25, check)


def test_a_stream_is_asked_of_one_member(folder: RunFolder) -> None:
    async def check(driver: Member, source: Source) -> None:
        group = driver.group(Source, "source")
        with pytest.raises(
            AttributeError, match=r"Source.numbers is a stream: call it on one member, group\[index\]"
        ):
            await group.numbers(3)
        assert len([item async for item in group[0].numbers(3)]) == 3

    with_source(check)(folder)


def test_calls_of_an_actor_with_one_place_run_one_after_another_in_order(folder: RunFolder) -> None:
    async def check() -> None:
        actor = OneAtATime()
        async with joined(folder, ("one", 0, actor), ("driver", 0, None)) as (_, driver):
            one = driver.handle(OneAtATime, "one", 0)
            assert await asyncio.gather(*(one.work(n) for n in range(20))) == list(range(20))
            assert actor.seen == [f"{n} {what}" for n in range(20) for what in ("begins", "ends")]
            answers = await asyncio.gather(*(one.work(n) for n in range(40)), return_exceptions=True)
            assert answers[:21] == list(range(21))  # one runs, twenty wait
            assert {str(a) for a in answers[21:]} == {"one-0.work: 21 calls already run or wait here"}

    within(20, check)


def test_limits_that_cannot_be_are_refused_with_the_class() -> None:
    with pytest.raises(ValueError, match="concurrency=0, must be 1 or more"):

        class Never(Actor, concurrency=0):
            pass
