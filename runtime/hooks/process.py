"""One process of a pool of hooks, as the pool sees it: starts it, ends it, and says how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from verst.runtime.actors.pulse import SHOW_STACK
from verst.runtime.hooks.frames import last_dumped, user_stack
from verst.runtime.hooks.pool_messages import Call, Reply, Setting, receive, send

_STACK_S = 1.0  # for a process to write its stack before it is ended
_END_S = 10.0


class HookProcess:
    """A running `pool_process`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        stacks: int,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._stacks = stacks  # a file in memory
        self._end: tuple[str, str] | None = None

    @classmethod
    async def start(
        cls, what: str, path: str, *, timeout_s: float, memory_bytes: int, keywords: Mapping[str, Any]
    ) -> HookProcess:
        """Starts a process. Its first answer says whether the hook could be loaded. Prints go to this process's log.

        The kernel kills it when the thread that calls this ends.
        """
        mine, theirs = socket.socketpair()
        stacks = os.memfd_create("verst-stacks")
        setting = Setting(
            what=what,
            path=path,
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            parent=os.getpid(),
            socket=theirs.fileno(),
            stacks=stacks,
            keywords=dict(keywords),
        )
        places = [place or os.getcwd() for place in sys.path]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "verst.runtime.hooks.pool_process"),
                msgspec.json.encode(setting).decode(),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), stacks),
                process_group=0,  # so that it can be ended with all that it has started
            )
        except BaseException:
            mine.close()
            os.close(stacks)
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_unix_connection(sock=mine)
        return cls(process, reader, writer, stacks)

    async def receive(self) -> Any:
        """Its next answer; None when it has ended."""
        try:
            return await receive(self._reader, Reply)
        except (asyncio.IncompleteReadError, OSError):
            return None

    def send(self, call: Call) -> None:
        """Sends a call. One that has ended does not read it; `receive` tells."""
        with contextlib.suppress(ConnectionError):
            send(self._writer, call)

    async def stack(self) -> str:
        """The stack of each of its threads as it runs, even while it holds Python's lock; "" if it writes none."""
        if self._process.returncode is None:
            self._process.send_signal(SHOW_STACK)
        length = 0
        for _ in range(int(_STACK_S / 0.05)):
            await asyncio.sleep(0.05)
            if self._stacks < 0:  # it has ended meanwhile
                return ""
            now = os.fstat(self._stacks).st_size
            if now and now == length:
                break
            length = now
        return self._last_stack()

    def kill(self) -> None:
        """Ends it and all processes that it has started, unless those made groups of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def ended(self) -> tuple[str, str]:
        """Waits for its end, after it was killed or its socket was closed. Returns how it ended, and its last stack."""
        if self._end is not None:
            return self._end
        try:
            async with asyncio.timeout(_END_S):
                code = await self._process.wait()
        except TimeoutError:
            self.kill()
            code = await self._process.wait()
        self.kill()  # what it has started
        self._writer.close()
        stack = self._last_stack()
        os.close(self._stacks)
        self._stacks = -1
        self._end = _ending(code) + last_dumped(stack), stack
        return self._end

    def _last_stack(self) -> str:
        return user_stack(os.pread(self._stacks, 65536, 0).decode(errors="replace").rstrip())


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    number = -code
    if number == signal.SIGVTALRM:
        return "used too much CPU time in one operation"
    why: dict[int, str] = {
        signal.SIGKILL: ", as a rule because the node ran out of memory",
        signal.SIGSEGV: ", a fault of native code",
        signal.SIGBUS: ", a fault of native code",
        signal.SIGABRT: ", by native code; perhaps it could not get memory (rollout.reward_memory_gib)",
    }
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"its process was killed by signal {number}"
    return f"its process was killed by {known.name}{why.get(known, '')}"
