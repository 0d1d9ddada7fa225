"""Members in processes of their own, and tests with a deadline."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.actors import echo
from tests.runtime.actors.live_member import Live
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def start_echo(folder: RunFolder) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts echo-<index> in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(index: int, lease: float = 30.0) -> subprocess.Popen[bytes]:
        argv = [sys.executable, echo.__file__, str(folder.root), str(index), str(lease)]
        started.append(subprocess.Popen(argv, cwd=folder.root))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    made = Live(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[[], Live]]:
    """For tests that change the limits first."""
    made: list[Live] = []

    def make() -> Live:
        made.append(Live(tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Runs an asynchronous test with a deadline."""

    async def timed() -> None:
        async with asyncio.timeout(seconds):
            await work()

    asyncio.run(timed())
