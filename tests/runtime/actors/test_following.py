"""What members cost the shared file system: those that call others by name leave the folder alone."""

from __future__ import annotations

import asyncio
import io
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.actors.conftest import within
from tests.runtime.actors.echo import Echo
from verst.runtime.actors import CallTimeout, Member, MemberLost
from verst.runtime.run.folder import RunFolder

StartEcho = Callable[..., "subprocess.Popen[bytes]"]


@contextmanager
def counted(folder: RunFolder) -> Iterator[Counter[str]]:
    """Counts this process's calls that name a path in the run folder, and those on its member files by path."""
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patches:
        for module, name in [
            *((os, name) for name in ("open", "scandir", "listdir", "stat", "lstat", "utime", "replace")),
            (io, "open"),
        ]:
            patches.setattr(module, name, _counting(getattr(module, name), name, folder, calls))
        yield calls


def _counting(real: Callable[..., Any], name: str, folder: RunFolder, calls: Counter[str]) -> Any:
    def call(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str | Path) and str(path).startswith(str(folder.root)):
            calls[name] += 1
            calls[Path(path).name] += 1
        return real(path, *args, **kwargs)

    return call


def listings(calls: Counter[str]) -> int:
    return calls["scandir"] + calls["listdir"]


def test_a_caller_by_name_never_lists_and_opens_a_file_once_in_a_third_of_a_lease(folder: RunFolder) -> None:
    async def work() -> None:
        members = [await Member.join(folder, "echo", index, Echo()) for index in range(3)]
        driver = await Member.join(folder, "driver", 0, None, lease=3.0)
        with counted(folder) as calls:
            handle = driver.handle(Echo, "echo", 1)
            began = time.monotonic()
            while time.monotonic() - began < 3.5:
                await handle.count()
                await asyncio.sleep(0.01)
        assert listings(calls) == 0
        assert 3 <= calls["echo-1.json"] <= 5  # at the first call and each second
        assert calls["echo-0.json"] == calls["echo-2.json"] == 0
        for member in (driver, *members):
            await member.leave()

    within(20, work)


def test_a_name_that_nobody_is_connected_to_is_not_read(folder: RunFolder) -> None:
    async def work() -> None:
        echo = await Member.join(folder, "echo", 0, Echo())
        driver = await Member.join(folder, "driver", 0, None, lease=1.0)
        await driver.handle(Echo, "echo", 0).count()
        await echo.leave()
        await asyncio.sleep(0.5)
        with counted(folder) as calls:
            driver.handle(Echo, "echo", 0)
            await asyncio.sleep(1.0)
            assert calls["echo-0.json"] == 0
            for _ in range(3):
                with pytest.raises(MemberLost, match="echo-0 is lost"):
                    await driver.handle(Echo, "echo", 0).count()
            assert calls["echo-0.json"] == 3  # each call looks, at once
        await driver.leave()

    within(20, work)


def test_only_questions_about_a_whole_role_list_the_folder(folder: RunFolder) -> None:
    async def work() -> None:
        members = [await Member.join(folder, "echo", index, Echo()) for index in range(3)]
        driver = await Member.join(folder, "driver", 0, None)
        with counted(folder) as calls:
            assert await driver.group(Echo, "echo", indices=[0, 2]).count() == [1, 1]
            assert (await driver.find("echo", 1)).name == "echo-1"
            assert (await driver.wait_for_one("echo", 1, 5)).name == "echo-1"
            assert listings(calls) == 0
            assert driver.members("echo") == []
            assert await driver.group(Echo, "echo").count() == [2, 1, 2]
            assert listings(calls) == 1
            assert [info.index for info in driver.members("echo")] == [0, 1, 2]
        for member in (driver, *members):
            await member.leave()

    within(20, work)


def test_a_named_member_that_starts_again_is_found_at_the_next_call(
    folder: RunFolder, start_echo: StartEcho
) -> None:
    async def work() -> None:
        driver = await Member.join(folder, "driver", 0, None)
        first = start_echo(0)
        before = await driver.wait_for_one("echo", 0, 20)
        handle = driver.handle(Echo, "echo", 0)
        assert [await handle.count(), await handle.count()] == [1, 2]
        first.kill()
        first.wait()
        await asyncio.sleep(0.2)
        with pytest.raises(MemberLost):
            await handle.count()
        start_echo(0)
        after = await driver.wait_for_one("echo", 0, 20)
        assert after.incarnation != before.incarnation
        assert await handle.count() == 1
        await driver.leave()

    within(40, work)


def test_waiting_for_one_looks_ever_more_seldom_and_names_it_when_it_gives_up(folder: RunFolder) -> None:
    async def work() -> None:
        driver = await Member.join(folder, "driver", 0, None)
        with counted(folder) as calls:
            with pytest.raises(CallTimeout, match=r"waiting for echo-0 \(it has no member file\)"):
                await driver.wait_for_one("echo", 0, timeout=2.5)
            # every 10 ms at first, later after a tenth of the time that it has waited; on a busy machine fewer
            assert 3 <= calls["echo-0.json"] <= 45
        waiting = asyncio.ensure_future(driver.wait_for_one("echo", 0, timeout=10))
        await asyncio.sleep(0.1)
        echo = await Member.join(folder, "echo", 0, Echo())
        assert (await waiting).incarnation == echo.info.incarnation
        await echo.leave()
        await driver.leave()

    within(20, work)


def test_a_member_that_a_cached_listing_does_not_show_yet_is_not_taken_for_gone(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS may serve a listing of half a minute ago, while opening a file asks the server."""

    class Old(list):  # type: ignore[type-arg]
        def __enter__(self) -> Old:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    async def work() -> None:
        driver = await Member.join(folder, "driver", 0, None, lease=3.0)
        driver.members("echo")
        echo = Echo()
        member = await Member.join(folder, "echo", 0, echo, lease=3.0)
        monkeypatch.setattr(os, "scandir", lambda path: Old())
        call = asyncio.ensure_future(driver.handle(Echo, "echo", 0).sleep(1.5))
        assert await call == "slept"
        monkeypatch.undo()
        await member.leave()
        await driver.leave()

    within(20, work)


def test_joining_raises_the_limit_on_open_files(folder: RunFolder) -> None:
    program = (
        "import asyncio, resource, sys\n"
        "from verst.runtime.actors import Member\n"
        "from verst.runtime.run.folder import RunFolder\n"
        "async def main():\n"
        "    member = await Member.join(RunFolder(sys.argv[1]), 'echo', 0, None)\n"
        "    print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "    await member.leave()\n"
        "asyncio.run(main())\n"
    )
    hard = 2000
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder.root)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout.split() == [str(hard), str(hard)], done.stderr
