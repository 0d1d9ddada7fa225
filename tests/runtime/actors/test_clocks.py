"""Clocks that jump, here and on the file server, make nobody lost and keep nobody who is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo
from verst.runtime.actors import CallTimeout, Member, MemberLost
from verst.runtime.run.folder import RunFolder

LEASE_S = 3.0
HOUR_S = 3600.0
# A member whose clock jumps by an hour and back, and whose file server stamps files by a clock that does so too.
JUMPING = f"""
import asyncio, os, sys, time
root, index, hours = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
now, utime, began = time.time, os.utime, time.monotonic()
def jumping():
    late = time.monotonic() - began
    return now() + (hours * {HOUR_S} if 2 < late < 4 or late > 6 else 0.0)
time.time = jumping
os.utime = lambda path, *rest: utime(path, (jumping(), jumping()))
from tests.runtime.actors import echo
asyncio.run(echo.serve(root, index, {LEASE_S}))
"""


@pytest.fixture
def jumping(folder: RunFolder) -> Iterator[list[subprocess.Popen[bytes]]]:
    """echo-0 whose clocks jump forwards, echo-1 whose jump backwards."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JUMPING, str(folder.root), str(index), str(hours)],
            cwd=Path(__file__).parents[3],
        )
        for index, hours in enumerate((1.0, -1.0))
    ]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.long
def test_clocks_that_jump_by_an_hour_lose_nobody_and_a_silent_member_is_noticed(
    folder: RunFolder, jumping: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time

    async def work() -> None:
        by_name = await Member.join(folder, "driver", 0, None, lease=LEASE_S)
        by_role = await Member.join(folder, "driver", 1, None, lease=LEASE_S)
        before = await by_role.wait_for("echo", 2, 30)
        handles = [by_name.handle(Echo, "echo", index) for index in range(2)]
        stamps: set[float] = set()
        began = time.monotonic()
        while (late := time.monotonic() - began) < 10:
            jump = HOUR_S if 1 < late < 3 else -HOUR_S if 5 < late < 7 else 0.0
            monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
            assert by_role.members("echo") == before
            assert [await handle.count() > 0 for handle in handles] == [True, True]
            stamps.update(round((_modified(folder, index) - now()) / HOUR_S) for index in range(2))
            await asyncio.sleep(0.1)
        assert stamps == {-1, 0, 1}

        for process in jumping:
            process.send_signal(signal.SIGSTOP)  # the connections stay up: only the lease tells
        stopped = time.monotonic()
        for index, handle in enumerate(handles):
            with pytest.raises(MemberLost, match=rf"echo-{index} .* its lease was not renewed"):
                await handle.count()
        assert time.monotonic() - stopped < 8.0
        while by_role.members("echo"):
            assert time.monotonic() - stopped < 8.0
            await asyncio.sleep(0.1)
        monkeypatch.undo()
        await by_name.leave()
        await by_role.leave()

    within(60, work)


def _modified(folder: RunFolder, index: int) -> float:
    return os.stat(folder.members / f"echo-{index}.json").st_mtime


# A member that calls echo-0, which answers in time while this process is suspended.
SUSPENDED = """
import asyncio, sys
from tests.runtime.actors.echo import Echo
from verst.runtime.actors import Member
from verst.runtime.run.folder import RunFolder
async def main():
    async with await Member.join(RunFolder(sys.argv[1]), "driver", 0, None) as member:
        await member.wait_for("echo", 1, 30)
        handle = member.handle(Echo, "echo", 0, timeout=2.5)
        await handle.count()
        print("calls", flush=True)
        print(await handle.sleep(1.5), flush=True)
asyncio.run(main())
"""


def test_a_suspended_process_does_not_take_its_own_sleep_for_the_others_silence(
    folder: RunFolder, start_echo: Callable[..., subprocess.Popen[bytes]]
) -> None:
    start_echo(0)
    caller = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED, str(folder.root)],
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "calls\n"
        time.sleep(0.3)
        caller.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        caller.send_signal(signal.SIGCONT)
        assert caller.communicate(timeout=30)[0] == "slept\n"
    finally:
        caller.kill()
        caller.wait()


def test_a_call_of_a_process_that_is_awake_ends_in_time(
    folder: RunFolder, start_echo: Callable[..., subprocess.Popen[bytes]]
) -> None:
    start_echo(0)

    async def work() -> None:
        async with await Member.join(folder, "driver", 0, None) as member:
            await member.wait_for("echo", 1, 30)
            began = time.monotonic()
            with pytest.raises(CallTimeout):
                await member.handle(Echo, "echo", 0, timeout=1.0).sleep(60.0)
            assert time.monotonic() - began < 3.0

    within(60, work)
