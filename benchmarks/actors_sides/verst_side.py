"""Verst's side: `python -m benchmarks.actors_sides.verst_side measure|first|call …`.

The actors are those of an app (docs/actors.md), started by a node agent as `verst actors run` starts it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from verst.runtime.actors import Actor, Member, create_keys, shared_array
from verst.runtime.node.actor_host import Hosted, Hosting
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process


class Echo(Actor):
    """What is called."""

    async def one(self) -> int:
        return 1

    async def size(self, array: np.ndarray) -> int:
        return array.nbytes

    async def pid(self) -> int:
        return os.getpid()


def new_folder(root: str) -> RunFolder:
    """A run with keys."""
    folder = RunFolder(Path(root) / "run")
    folder.create()
    folder.start_generation()
    create_keys(folder)
    return folder


@contextmanager
def actors(folder: RunFolder, count: int) -> Iterator[None]:
    """An agent with echo-0 … echo-(count - 1)."""
    Hosting(roles={"echo": Hosted(actor=f"{__spec__.name}:Echo", count=count)}).write(folder)
    argv = [
        sys.executable,
        "-m",
        "verst.runtime.node.actor_host",
        "--run",
        str(folder.root),
        "--role",
        "echo",
    ]
    processes = [
        Process(role="echo", index=i, argv=[*argv, "--index", str(i)], forks=True) for i in range(count)
    ]
    Plan(name="benchmark", groups={"actors": [Node(processes=processes)]}).write(folder.plan)
    agent = [sys.executable, "-m", "verst.runtime.node.agent", "--run", str(folder.root), "--group", "actors"]
    started = subprocess.Popen([*agent, "--node", "0", "--generation", str(folder.generation)])
    try:
        yield
    finally:
        started.terminate()
        started.wait()


async def first() -> None:
    """From nothing to the first answer; the caller times the whole process."""
    with tempfile.TemporaryDirectory() as root:
        folder = new_folder(root)
        with actors(folder, 1):
            async with await Member.join(folder, "caller", 0, None) as member:
                await member.wait_for_one("echo", 0, 60)
                assert await member.handle(Echo, "echo", 0).one() == 1
                print(time.time(), flush=True)


async def call(root: str, index: int, calls: int, in_flight: int) -> None:
    """One of several callers: starts when told to, prints when it began and ended."""
    async with await Member.join(RunFolder(root), "caller", index, None) as member:
        handle = member.handle(Echo, "echo", 0)
        await handle.one()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began = time.time()
        await calls_at_once(handle, calls, in_flight)
        print(json.dumps([began, time.time()]), flush=True)


async def calls_at_once(handle: Echo, calls: int, in_flight: int) -> None:
    for _ in range(calls // in_flight):
        await asyncio.gather(*(handle.one() for _ in range(in_flight)))


async def measure() -> dict[str, Any]:
    """Everything but the start of a first call."""
    from benchmarks.actors_sides import measures as m

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = new_folder(root)
        async with await Member.join(folder, "caller", 0, None) as member:
            with actors(folder, 1):
                await member.wait_for_one("echo", 0, 60)
                handle = member.handle(Echo, "echo", 0)
                found |= m.round_trips([await timed(handle.one) for _ in range(m.ROUND_TRIPS)])
                began = time.perf_counter()
                await calls_at_once(handle, m.CALLS, m.IN_FLIGHT)
                found["calls_per_s_one_caller"] = m.CALLS / (time.perf_counter() - began)
                command = [sys.executable, "-P", "-m", __spec__.name, "call", str(folder.root)]
                found["calls_per_s_eight_callers"] = await asyncio.to_thread(
                    m.several_callers, [[*command, str(10 + i)] for i in range(m.CALLERS)]
                )
                found["array_gb_per_s"] = m.gigabytes_per_second(
                    [await timed(lambda: handle.size(m.ARRAY)) for _ in range(m.ARRAYS)]
                )
                shared = shared_array(m.ARRAY.shape, m.ARRAY.dtype)
                shared[:] = m.ARRAY
                found["shared_array_gb_per_s"] = m.gigabytes_per_second(
                    [await timed(lambda: handle.size(shared)) for _ in range(m.ARRAYS)]
                )
            began = time.perf_counter()
            with actors(folder, m.MANY):
                await member.wait_for("echo", m.MANY, 120)
                pids = await member.group(Echo, "echo").pid()
                found["start_16_actors_s"] = time.perf_counter() - began
                await asyncio.sleep(2)
                found |= m.memory_mib(pids)
    return found


async def timed(call: Any) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["first"]:
            asyncio.run(first())
        case ["call", root, index, calls, in_flight]:
            asyncio.run(call(root, int(index), int(calls), int(in_flight)))
        case ["measure"]:
            print(json.dumps(asyncio.run(measure())))
