"""Work that an actor hands to the main thread, and calls that the main thread makes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from verst.runtime.actors import (
    Actor,
    CallTimeout,
    MainThread,
    Member,
    MemberThread,
    RemoteError,
    StaleGeneration,
)
from verst.runtime.run.folder import RunFolder


class Rank(Actor):
    """What a trainer rank looks like to the wire."""

    def __init__(self, main: MainThread) -> None:
        self.main = main

    async def where(self) -> str:
        return await self.main.run(lambda: threading.current_thread().name)

    async def divide(self, a: int, b: int) -> float:
        return await self.main.run(lambda: a / b)

    async def stop(self) -> None:
        self.main.stop()


def drive(folder: RunFolder, work: Callable[[Rank], object]) -> threading.Thread:
    """Calls trainer-0 from a thread with a loop of its own."""

    async def run() -> None:
        driver = await Member.join(folder, "driver", 0, None)
        await driver.wait_for("trainer", 1, 10)
        handle = driver.handle(Rank, "trainer", 0, timeout=10)
        try:
            await work(handle)  # type: ignore[misc]
        finally:
            await handle.stop()
            await driver.leave()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    return thread


def test_work_runs_on_the_main_thread_and_exceptions_travel_back(folder: RunFolder) -> None:
    seen: list[object] = []

    async def work(rank: Rank) -> None:
        seen.append(await rank.where())
        seen.append(await rank.divide(6, 3))
        with pytest.raises(RemoteError, match="ZeroDivisionError: division by zero") as caught:
            await rank.divide(1, 0)
        seen.append("self.main.run(lambda: a / b)" in caught.value.traceback)

    main = MainThread()
    with MemberThread(main, folder, "trainer", 0, Rank(main)):
        thread = drive(folder, work)
        main.serve()
    thread.join(10)
    assert seen == [threading.main_thread().name, 2.0, True]


def test_the_main_thread_makes_calls_with_a_deadline(folder: RunFolder) -> None:
    main = MainThread()
    with MemberThread(main, folder, "trainer", 0, Rank(main)) as thread:
        [info] = thread.call(thread.member.wait_for("trainer", 1, 5), 10)
        assert info.name == "trainer-0"
        with pytest.raises(CallTimeout, match=r"no result within 0\.1 s"):
            thread.call(asyncio.sleep(30), 0.1)


def test_serve_ends_with_the_reason_when_the_run_has_gone_on_without_us(folder: RunFolder) -> None:
    main = MainThread()
    with MemberThread(main, folder, "trainer", 0, Rank(main), lease=1.0):
        folder.start_generation()
        with pytest.raises(StaleGeneration, match="it is of life 0, the run of life 1"):
            main.serve()


def test_a_member_that_cannot_join_leaves_no_thread(folder: RunFolder) -> None:
    (folder.keys / "curve.json").unlink()
    before = threading.active_count()
    main = MainThread()
    with (
        pytest.raises(FileNotFoundError, match="create_keys"),
        MemberThread(main, folder, "trainer", 0, None),
    ):
        pass
    assert threading.active_count() <= before
