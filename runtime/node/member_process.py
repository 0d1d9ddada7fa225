"""Starts a process of a run: its command line, log, tracer and membership.

A node agent starts it as `python -m verst.runtime.X --run DIR --index K`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from verst.runtime.actors import Actor, Member
from verst.runtime.metrics.config import MetricsConfig
from verst.runtime.metrics.trace import NO_TRACE, Tracer
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import stamp_output


@dataclass(frozen=True)
class MemberProcess:
    """This process's place in the run: the run folder, the life of the run, and its index in its role."""

    folder: RunFolder
    index: int
    generation: int
    host: str

    @staticmethod
    def from_command_line() -> MemberProcess:
        """Reads the command line and the environment from the node agent. Also sets up logging."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--run", required=True, type=Path)
        parser.add_argument("--index", required=True, type=int)
        arguments = parser.parse_args()
        stamp_output()
        # The node agent asks for this process's stack with SIGUSR1 (`agent/stacks.py`). The handler is C code: it
        # answers even if a thread holds the interpreter's lock for ever.
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        if "VERST_SHIELDED" in os.environ:
            # Slurm sends SIGTERM to every process of a job. Whether this one ends is for the agent to decide,
            # which uses SIGHUP. A handler, unlike SIG_IGN, is not inherited by the processes that this one
            # starts.
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        folder = RunFolder(arguments.run)
        generation = int(os.environ.get("VERST_GENERATION", folder.generation))
        return MemberProcess(folder, arguments.index, generation, os.environ.get("VERST_HOST", "127.0.0.1"))

    @staticmethod
    def run(main: Callable[[MemberProcess], Awaitable[None]]) -> None:
        """Runs the asyncio function `main` with this process's place in the run."""
        asyncio.run(main(MemberProcess.from_command_line()))  # type: ignore[arg-type]

    def tracer(self) -> Tracer:
        """The tracer for this process in this life of the run; one that records nothing if traces are off."""
        if not self.folder.section("metrics", MetricsConfig).traces:
            return NO_TRACE
        known = {key: os.environ.get(f"VERST_{key.upper()}", "0") for key in ("group", "node", "role")}
        about = {
            "process": f"{known['role']}-{self.index}",
            "group": known["group"],
            "node": int(known["node"]),
            "host": socket.gethostname(),
            "generation": self.generation,
        }
        name = f"{known['group']}-{known['node']}-{about['process']}.jsonl"
        return Tracer(self.folder.traces / f"life-{self.generation}" / name, about)

    def log_folder(self) -> Path:
        """The folder for the logs of this node's processes."""
        group, node = os.environ["VERST_GROUP"], int(os.environ["VERST_NODE"])
        return self.folder.log_folder(group, node, self.generation)

    async def join(self, role: str, actor: Actor, details: dict[str, str | int] | None = None) -> Member:
        """Joins the run as a member that serves `actor`."""
        return await Member.join(self.folder, role, self.index, actor, self.host, details)


async def serve_forever(process: MemberProcess, role: str, actor: Actor) -> None:
    """Joins the run and answers calls until the process is ended. Raises the reason if it is fenced off."""
    member = await process.join(role, actor)
    if (reason := await member.wait_left()) is not None:
        raise reason


def say(text: str) -> None:
    """Writes a line to stderr, this process's log. A failed write must not change how the process ends."""
    with contextlib.suppress(OSError):
        print(f"verst: {text}", file=sys.stderr, flush=True)
