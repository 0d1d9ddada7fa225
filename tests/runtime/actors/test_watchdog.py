"""A member whose event loop hangs is dead to the others, says in what it hangs, and under an agent ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.runtime.actors import echo
from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo
from tests.runtime.actors.test_calls import joined
from verst.runtime.actors import MemberLost
from verst.runtime.actors.watchdog import EXIT_CODE
from verst.runtime.run.folder import RunFolder

LEASE_S = 2.0


@pytest.mark.parametrize("agent", [True, False])
def test_a_hung_loop_is_told_with_its_stack_and_the_member_is_lost(
    folder: RunFolder, tmp_path: Path, agent: bool
) -> None:
    log = tmp_path / "log"
    env = dict(os.environ) | ({"VERST_GENERATION": "0"} if agent else {})
    with log.open("wb") as stderr:
        argv = [sys.executable, echo.__file__, str(folder.root), "0", str(LEASE_S)]
        process = subprocess.Popen(argv, cwd=folder.root, stderr=stderr, env=env)

    async def check() -> None:
        async with joined(folder, ("driver", 0, None), lease=LEASE_S) as (driver,):
            await driver.wait_for("echo", 1, timeout=15)
            began = time.monotonic()
            with pytest.raises(MemberLost, match="echo-0"):
                await driver.handle(Echo, "echo", 0).block_the_loop(60)
            assert time.monotonic() - began < 10
            if agent:
                assert await asyncio.to_thread(process.wait, 15) == EXIT_CODE

    try:
        within(40, check)
        assert agent or process.poll() is None  # it is not ours to end
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert "echo-0: its event loop has not run for" in said
    assert "in block_the_loop" in said


def test_a_process_that_was_stopped_has_not_hung() -> None:
    script = """
import asyncio
from verst.runtime.actors.watchdog import watch
async def main():
    stop = watch("me", 0.5)
    print("ready", flush=True)
    await asyncio.sleep(3)
    stop()
asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 0
    assert process.stderr.read() == ""


def test_members_of_a_loop_share_a_watchdog_which_ends_with_the_last(folder: RunFolder) -> None:
    def dogs() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.endswith("-watchdog")]

    async def check() -> None:
        async with joined(folder, ("driver", 0, None)):
            async with joined(folder, ("driver", 1, None), ("driver", 2, None)):
                assert [dog.name for dog in dogs()] == ["driver-0-watchdog"]
            (dog,) = dogs()
        await asyncio.to_thread(dog.join, 5)
        assert not dogs()

    within(10, check)
