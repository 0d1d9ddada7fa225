"""Runs the SGLang server as a process: starts it, watches it, and kills it with all its child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import sys
from pathlib import Path

import psutil

from verst.runtime.node.scratch import Scratch
from verst.runtime.rollout.engine import process as engine_process
from verst.runtime.rollout.inside_sglang import plugin as engine_plugin

_LAST_LINES = 25


class EngineServer:
    """One server process and its log."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, scratch: Scratch, start: int) -> None:
        self._process = process
        self._log = log
        self._scratch = scratch
        self._log_start = start

    @classmethod
    async def start(
        cls, arguments: list[str], *, device: str, key: str, environment: dict[str, str], log: Path
    ) -> EngineServer:
        """Starts the server. The kernel kills it when the calling thread ends (PR_SET_PDEATHSIG)."""
        # SGLang makes its internal sockets in TMPDIR, which is therefore a private folder and not everybody's /tmp.
        scratch = Scratch("verst-engine-", sockets=True)
        own = {
            engine_plugin.ENGINE: device,
            engine_process.KEY: key,
            engine_process.PARENT: str(os.getpid()),
            "TMPDIR": str(scratch.path),
        }
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        start = os.fstat(output).st_size
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-u", "-P", "-m", "verst.runtime.rollout.engine.process", *arguments),
                env={**os.environ, **environment, **own},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            os.close(output)
        return cls(process, log, scratch, start)

    @property
    def pid(self) -> int:
        """The process id of the main process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the main process is running."""
        return self._process.returncode is None

    async def wait_dead(self) -> str:
        """Waits until the main process has ended; returns how it ended, with its last lines."""
        code = await self._process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit {code}"
        return f"the SGLang server ended ({how}); the last lines of {self._log}:\n{self.last_lines()}"

    def last_lines(self, count: int = _LAST_LINES) -> str:
        """The last lines of this server's log."""
        with self._log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(self._log_start, size - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join("  " + line for line in lines[-count:])

    async def kill(self, timeout_s: float = 10) -> None:
        """Kills the server and all its children, and waits until they are gone. Raises TimeoutError if some are not."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            main = psutil.Process(self.pid)
            family = [*main.children(recursive=True), main] if self.alive() else []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await asyncio.wait_for(self._process.wait(), timeout_s)
        _, left = await asyncio.to_thread(psutil.wait_procs, family[:-1], timeout_s)
        self._scratch.remove()
        if left:
            raise TimeoutError(
                f"processes {[p.pid for p in left]} of the engine are still there {timeout_s} s after SIGKILL"
            )


def free_port(host: str, but: int | None = None) -> int:
    """Finds a port of `host` that nothing listens on, for a server that opens it half a minute later, not `but`.

    It is outside the kernel's ephemeral range if that begins above 12,000, since a port inside could meanwhile be given
    to any outgoing connection.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(10_240, first_ephemeral) if first_ephemeral > 12_000 else range(61_000, 65_536)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.SystemRandom().sample(candidates, 100):
        if port == but:
            continue
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of 100 ports of {host} between {candidates[0]} and {candidates[-1]} is free")
