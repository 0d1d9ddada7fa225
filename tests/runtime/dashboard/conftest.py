"""A run folder with a few steps, and dashboards that serve it over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.runtime.dashboard.run_folders import BEGAN, append, make_folder, step
from verst.runtime.dashboard.server import Server
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three of four steps are trained."""
    folder = make_folder(tmp_path / "quick")
    append(
        folder.metrics,
        {
            "time": BEGAN,
            "kind": "eval",
            "step": 0,
            "set": "held_out",
            "when": "before",
            "reward": 0.25,
            "samples": 40,
        },
    )
    append(folder.metrics, *(step(number) for number in range(1, 4)))
    append(
        folder.events, {"time": BEGAN, "generation": 0, "kind": "engine_ready", "message": "engine 0 serves"}
    )
    return folder


@contextmanager
def served(folder: RunFolder | Path) -> Iterator[Server]:
    """A dashboard on a free port."""
    server = Server(folder)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


@contextmanager
def visitor(server: Server) -> Iterator[httpx.Client]:
    """Who has opened the printed address: has the cookie."""
    address = f"http://127.0.0.1:{server.port}"
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        assert client.get("/", params={"token": server.token}).status_code == 303
        yield client


@pytest.fixture
def visit() -> Iterator[Callable[[RunFolder], httpx.Client]]:
    """Starts a dashboard and lets the test in."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(visitor(stack.enter_context(served(folder))))
