"""Members in processes of their own, and tests with a deadline."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.runtime.actors import echo
from verst.runtime.run_folder import RunFolder


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


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Runs an asynchronous test with a deadline."""

    async def timed() -> None:
        async with asyncio.timeout(seconds):
            await work()

    asyncio.run(timed())
