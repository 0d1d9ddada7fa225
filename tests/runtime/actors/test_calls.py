"""What a call promises its caller: the result, or an error that says why not, by the deadline."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo, Scores
from verst.runtime.actors import (
    Actor,
    CallRefused,
    CallTimeout,
    Member,
    MemberLost,
    RemoteError,
    StaleGeneration,
    wire,
)
from verst.runtime.run.folder import RunFolder

StartEcho = Callable[..., "subprocess.Popen[bytes]"]


@asynccontextmanager
async def joined(
    folder: RunFolder, *roles: tuple[str, int, Actor | None], **options: float
) -> AsyncIterator[list[Member]]:
    """Members in this process, each with its own sockets."""
    members = [await Member.join(folder, role, index, actor, **options) for role, index, actor in roles]
    try:
        yield members
    finally:
        await asyncio.gather(*(member.leave() for member in members))


def with_echo(test: Callable[[Member, Member, Echo], Awaitable[None]]) -> Callable[[RunFolder], None]:
    """A test that gets a caller and an echo member of this process, and 20 s."""

    @functools.wraps(test, updated=())
    def run(folder: RunFolder) -> None:
        async def work() -> None:
            echo = Echo()
            async with joined(folder, ("echo", 0, echo), ("driver", 0, None)) as (member, driver):
                await test(driver, member, echo)

        within(20, work)

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for the inner test's arguments
    return run


async def cancelled(driver: Member) -> None:
    """Waits until the sleeping method has seen its cancellation, once."""
    for _ in range(100):
        if await driver.handle(Echo, "echo", 0).cancellations() == 1:
            return
    raise AssertionError("not cancelled")


@with_echo
async def test_structs_and_arrays_come_back_as_they_were_sent(
    driver: Member, member: Member, echo: Echo
) -> None:
    handle = driver.handle(Echo, "echo", 0)
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    result = await handle.scale(Scores("a", values, {"x": 1}), 3)
    assert (result.name, result.counts, result.values.dtype) == ("a", {"x": 2}, np.float32)
    np.testing.assert_array_equal(result.values, values * 3)
    assert (await handle.scale(Scores("a", values), name="b")).name == "b"
    empty = await handle.scale(Scores("e", np.zeros((0, 5), np.int64)), factor=1)
    assert empty.values.shape == (0, 5)


@with_echo
async def test_a_large_array_crosses_whole(driver: Member, member: Member, echo: Echo) -> None:
    values = np.arange(4 << 20, dtype=np.int32)
    result = await driver.handle(Echo, "echo", 0).scale(Scores("big", values), 1)
    np.testing.assert_array_equal(result.values, values)


@with_echo
async def test_calls_run_at_the_same_time(driver: Member, member: Member, echo: Echo) -> None:
    handle = driver.handle(Echo, "echo", 0)
    started = time.monotonic()
    assert await asyncio.gather(*(handle.sleep(0.5) for _ in range(50))) == ["slept"] * 50
    assert time.monotonic() - started < 5


@with_echo
async def test_more_calls_than_may_be_in_flight_all_get_their_result(
    driver: Member, member: Member, echo: Echo
) -> None:
    handle = driver.handle(Echo, "echo", 0)
    assert sorted(await asyncio.gather(*(handle.count() for _ in range(3000)))) == list(range(1, 3001))


class Listener(Actor, concurrency=1):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    async def hear(self, n: int, with_it: bytes) -> int:
        self.heard.append(n)
        return n


def test_calls_of_all_sizes_arrive_in_order_and_small_ones_together(folder: RunFolder) -> None:
    async def work() -> None:
        listener = Listener()
        async with joined(folder, ("listener", 0, listener), ("driver", 0, None)) as (member, driver):
            handle = driver.handle(Listener, "listener", 0)
            await handle.hear(-1, b"")
            frames = 0
            taken_in = member._server._socket._on_message

            def count(message: list[object]) -> None:
                nonlocal frames
                frames += 1
                taken_in(message)

            member._server._socket._on_message = count  # type: ignore[method-assign]
            answers = await asyncio.gather(*(handle.hear(n, bytes(10)) for n in range(500)))
            assert answers == list(range(500))
            assert frames <= 500 // wire.MAX_PACKED + 1
            sizes = [10, 10, 5000, 10, 3 << 20, 10, 10, 5000, 5000, 10]
            await asyncio.gather(*(handle.hear(500 + n, bytes(size)) for n, size in enumerate(sizes)))
            assert listener.heard == list(range(-1, 500 + len(sizes)))

    within(20, work)


@with_echo
async def test_a_passed_deadline_names_the_call_and_cancels_it_remotely(
    driver: Member, member: Member, echo: Echo
) -> None:
    with pytest.raises(CallTimeout, match=r"echo-0\.sleep gave no result within 0\.2 s"):
        await driver.handle(Echo, "echo", 0, timeout=0.2).sleep(30)
    await cancelled(driver)


@with_echo
async def test_cancelling_the_callers_task_cancels_the_call_remotely(
    driver: Member, member: Member, echo: Echo
) -> None:
    call = asyncio.ensure_future(driver.handle(Echo, "echo", 0).sleep(30))
    await echo.began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await cancelled(driver)


@with_echo
async def test_an_exception_brings_its_type_its_message_and_the_traceback_from_there(
    driver: Member, member: Member, echo: Echo
) -> None:
    with pytest.raises(RemoteError) as caught:
        await driver.handle(Echo, "echo", 0).fail("no such prompt")
    assert (caught.value.type, caught.value.message) == ("LookupError", "no such prompt")
    assert "in fail\n    raise LookupError(text)" in str(caught.value)


@with_echo
async def test_a_result_that_cannot_cross_or_is_of_another_type_is_an_error_not_silence(
    driver: Member, member: Member, echo: Echo
) -> None:
    with pytest.raises(RemoteError, match="cannot encode a object"):
        await driver.handle(Echo, "echo", 0).unsendable()
    with pytest.raises(CallRefused, match=r"echo-0\.wrong: its result is not .*int"):
        await driver.handle(Echo, "echo", 0).wrong()


@with_echo
async def test_a_call_with_wrong_arguments_is_refused_by_name(
    driver: Member, member: Member, echo: Echo
) -> None:
    handle = driver.handle(Echo, "echo", 0)
    with pytest.raises(TypeError, match="missing a required argument: 'text'"):
        handle.fail()  # type: ignore[call-arg]
    with pytest.raises(CallRefused, match=r"echo-0\.fail: arguments: Expected `str`, got `int`"):
        await handle.fail(3)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=r"no callable method '_private'; it has: .*count"):
        await handle._private()

    class Other(Actor):
        async def pause(self) -> None: ...

    with pytest.raises(CallRefused, match=r"no method 'pause'; it has: .*count"):
        await driver.handle(Other, "echo", 0).pause()


def test_methods_that_cannot_be_on_the_wire_are_refused_when_the_class_is_used(folder: RunFolder) -> None:
    class NoResult(Actor):
        async def go(self, x: int): ...

    class NoType(Actor):
        async def go(self, x) -> None: ...

    async def work() -> None:
        with pytest.raises(TypeError, match="go: annotate the return type"):
            await Member.join(folder, "bad", 0, NoResult())
        with pytest.raises(TypeError, match="go: annotate x"):
            await Member.join(folder, "bad", 0, NoType())

    within(10, work)


def test_a_group_call_names_the_killed_member_within_seconds_and_the_others_answer(
    folder: RunFolder, start_echo: StartEcho
) -> None:
    processes = [start_echo(index) for index in range(3)]

    async def work() -> None:
        async with joined(folder, ("driver", 0, None)) as (driver,):
            assert [info.index for info in await driver.wait_for("echo", 3, timeout=20)] == [0, 1, 2]
            group = driver.group(Echo, "echo")
            assert await group.count() == [1, 1, 1]
            call = asyncio.ensure_future(group.sleep(1.0))
            await asyncio.sleep(0.3)
            processes[1].send_signal(signal.SIGKILL)
            killed = time.monotonic()
            first, lost, last = await call
            assert (first, last) == ("slept", "slept")
            assert isinstance(lost, MemberLost)
            assert lost.member == "echo-1"
            assert time.monotonic() - killed < 5
            with pytest.raises(MemberLost, match="echo-1 is lost"):
                await group[1].count()
            assert await group.count() == [2, 2]  # the group is who is there
            fixed = driver.group(Echo, "echo", indices=[0, 1, 2])
            assert isinstance((await fixed.count())[1], MemberLost)  # unless it is told who

    within(40, work)


def test_a_member_that_starts_again_is_found_under_its_name(folder: RunFolder, start_echo: StartEcho) -> None:
    async def work() -> None:
        async with joined(folder, ("driver", 0, None)) as (driver,):
            first = start_echo(0)
            [before] = await driver.wait_for("echo", 1, timeout=20)
            handle = driver.handle(Echo, "echo", 0)
            assert [await handle.count(), await handle.count()] == [1, 2]
            first.kill()
            first.wait()
            await asyncio.sleep(0.2)
            start_echo(0)
            [after] = await driver.wait_for("echo", 1, timeout=20)
            assert after.incarnation != before.incarnation
            assert await handle.count() == 1

    within(40, work)


def test_settle_gives_each_failure_with_its_member(folder: RunFolder) -> None:
    async def work() -> None:
        roles = [("echo", index, Echo()) for index in range(2)]
        async with joined(folder, *roles, ("driver", 0, None)) as (*_, driver):
            group = driver.group(Echo, "echo")
            answers = await group.settle("fail", "x")
            assert {index: type(answer) for index, answer in answers.items()} == {
                0: RemoteError,
                1: RemoteError,
            }
            with pytest.raises(RemoteError, match="LookupError: x"):
                await group.fail("x")

    within(20, work)


def test_wait_for_names_who_is_missing(folder: RunFolder) -> None:
    async def work() -> None:
        async with joined(folder, ("echo", 1, Echo()), ("driver", 0, None)) as (_, driver):
            with pytest.raises(CallTimeout, match=r"waiting for 3 members of echo: missing echo-0, echo-2"):
                await driver.wait_for("echo", 3, timeout=0.3)

    within(20, work)


def test_a_stopped_process_is_lost_when_its_lease_runs_out(folder: RunFolder, start_echo: StartEcho) -> None:
    """SIGSTOP leaves the connection up: only the lease tells."""
    process = start_echo(0, lease=3.0)

    async def work() -> None:
        async with joined(folder, ("driver", 0, None), lease=3.0) as (driver,):
            await driver.wait_for("echo", 1, 20)
            handle = driver.handle(Echo, "echo", 0)
            await handle.count()
            process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            with pytest.raises(MemberLost, match="its lease was not renewed"):
                await handle.count()
            assert 1.0 < time.monotonic() - stopped < 8.0
            assert driver.members("echo") == []

    try:
        within(30, work)
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_message_of_another_generation_is_refused_and_the_stale_member_leaves(folder: RunFolder) -> None:
    async def work() -> None:
        echo = Echo()
        old = await Member.join(folder, "driver", 0, None)
        folder.start_generation()
        new = await Member.join(folder, "echo", 0, echo)
        handle = old.handle(Echo, "echo", 0)
        with pytest.raises(MemberLost, match="of life 1, this is life 0"):
            await handle.count()
        old._presence._directory._generation = 1  # as if it read a directory older than the change
        with pytest.raises(MemberLost, match=r"life's"):  # other keys: it is not even connected
            await handle.count()
        assert echo.calls == 0
        assert new.counts["refused_handshake"] == 1
        reason = await old.wait_left()
        assert isinstance(reason, StaleGeneration)
        assert new.members("driver") == []
        with pytest.raises(MemberLost, match="this process has left the run"):
            await handle.count()
        await new.leave()

    within(20, work)


def test_a_second_process_under_a_name_takes_it_over_and_the_first_leaves(folder: RunFolder) -> None:
    async def work() -> None:
        first = await Member.join(folder, "echo", 0, Echo(), lease=1.0)
        second = await Member.join(folder, "echo", 0, Echo(), lease=1.0)
        reason = await first.wait_left()
        assert isinstance(reason, MemberLost)
        assert "another process joined under its name" in str(reason)
        assert (folder.members / "echo-0.json").exists()  # the second's
        await second.leave()
        assert not (folder.members / "echo-0.json").exists()

    within(20, work)


def test_leaving_lets_running_calls_finish(folder: RunFolder) -> None:
    async def work() -> None:
        echo = Echo()
        member = await Member.join(folder, "echo", 0, echo)
        async with joined(folder, ("driver", 0, None)) as (driver,):
            call = asyncio.ensure_future(driver.handle(Echo, "echo", 0).sleep(0.5))
            await echo.began.wait()
            await member.leave()
            assert await call == "slept"
            with pytest.raises(MemberLost):
                await driver.handle(Echo, "echo", 0).count()

    within(20, work)


def test_a_process_that_fails_without_leaving_exits_and_does_not_hang(folder: RunFolder) -> None:
    program = (
        "import asyncio, gc, sys\n"
        "from tests.runtime.actors.echo import Echo\n"
        "from verst.runtime.actors import Member\n"
        "from verst.runtime.run.folder import RunFolder\n"
        "async def main():\n"
        "    member = await Member.join(RunFolder(sys.argv[1]), 'echo', 0, Echo())\n"
        "    await member.handle(Echo, 'echo', 0).count()\n"
        "    raise LookupError('lost the plot')\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "finally:\n"
        "    gc.collect()\n"
    )
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-c", program, str(folder.root)]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "LookupError: lost the plot" in done.stderr


def test_a_process_of_an_earlier_generation_cannot_join_the_present_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERST_GENERATION", "0")
    folder.start_generation()

    async def work() -> None:
        with pytest.raises(StaleGeneration, match="echo-0 was started for life 0; the run is at life 1"):
            await Member.join(folder, "echo", 0, Echo())
        assert list(folder.members.iterdir()) == []

    within(10, work)
