"""A run folder with keys, members in this process, and members in processes of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.actors import echo
from verst.runtime.actors import create_keys
from verst.runtime.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.start_generation()
    create_keys(run)
    return run


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
