"""A process of a pool of hooks: loads one hook and calls it until the pool closes the socket.

`python -m verst.runtime.hooks.pool_process SETTING`; `process.py` starts it. A plain function runs in the main thread,
so signals and their timers work in it, and the pool sends one call at a time. Calls of an async function run
concurrently.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import importlib
import os
import resource
import signal
import socket
import sys
from typing import Any, NoReturn

import msgspec

from verst.runtime.actors.pulse import SHOW_STACK
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.frames import told, user_frames
from verst.runtime.hooks.hook import Hook
from verst.runtime.hooks.limits import limits_of
from verst.runtime.hooks.pool_messages import Began, Call, Failed, Ready, Returned, Setting, receive, send
from verst.runtime.hooks.preparation import prepare
from verst.runtime.hooks.values import score_of, scores_of
from verst.runtime.run.log_lines import stamp_output

_PR_SET_PDEATHSIG = 1
_AFTER_CPU_S = 1.0  # between the exception for too much CPU time and the end of the process


def main(text: str) -> None:
    """Serves until the pool is closed or this process is killed."""
    setting = msgspec.json.decode(text, type=Setting)
    _prepare(setting)
    stamp_output()
    asyncio.run(_serve(setting))
    # What the hook has left running (threads, clients) must not keep this process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _prepare(setting: Setting) -> None:
    """Dies with the worker, bounds memory, and writes its stack where the pool reads it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != setting.parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to every process of a job
    if "VERST_SHIELDED" in os.environ:
        signal.signal(
            signal.SIGTERM, lambda number, frame: None
        )  # and this one, too; the worker ends this process
    faulthandler.enable(setting.stacks, all_threads=False)
    faulthandler.register(SHOW_STACK, setting.stacks, all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    bound = setting.memory_bytes if hard == resource.RLIM_INFINITY else min(setting.memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


async def _serve(setting: Setting) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=setting.socket))
    try:
        hook = _load(setting)
    except HookError as error:
        send(writer, Failed(-1, str(error), error.frames, error.kind))
        await writer.drain()
        return
    server = _Server(hook, writer)
    send(writer, Ready(hook.is_async, server.limits))
    running: set[asyncio.Task[None]] = set()
    try:
        while True:
            call: Call = await receive(reader, Call)
            if not hook.is_async:
                await server.answer(call)
                continue
            task = asyncio.create_task(server.answer(call))
            running.add(task)
            task.add_done_callback(running.discard)
    except (asyncio.IncompleteReadError, OSError):  # the pool is closed
        return


def _load(setting: Setting) -> Hook:
    """Loads the hook and what it says it will need."""
    hook = Hook(
        setting.what,
        setting.path,
        timeout_s=setting.timeout_s,
        in_thread=False,
        passes=_TooMuchCpu,
        keywords=setting.keywords,
    )
    limits = limits_of(hook.function)
    where = f"{setting.what} {setting.path!r}"
    if hook.is_async and limits.cpu_s is not None:
        raise HookError(f"{where} is async: it cannot have a limit of CPU time", kind="load")
    for package in limits.imports:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise HookError(f"{where} needs the package {package}: {error}", kind="load") from error
    try:
        prepare(hook.function, setting.keywords)
    except ValueError as error:
        raise HookError(f"{where}: {error}", kind="load") from error
    except Exception as error:
        raise HookError(f"{where}: preparing it {told(error)}", user_frames(error), "load") from error
    return hook


class _Server:
    """Answers calls of one hook."""

    def __init__(self, hook: Hook, writer: asyncio.StreamWriter) -> None:
        self._hook = hook
        self._writer = writer
        self._pid = os.getpid()
        self._limited = False
        self.limits = limits_of(hook.function)

    async def answer(self, call: Call) -> None:
        """Calls the function and sends what came of it."""
        send(self._writer, Began(call.id))
        await self._writer.drain()
        self._limit_cpu(self.limits.cpu_s)
        try:
            given = call.argument
            check: Any = scores_of(len(given)) if isinstance(given, list) else score_of
            answer: Any = Returned(call.id, await self._hook(call.place, given, check=check))
        except _TooMuchCpu:
            problem = f"used more than {self.limits.cpu_s:g} s of CPU time"
            error = self._hook.fault(call.place, problem, kind="late")
            answer = Failed(call.id, str(error), "", "late")
        except HookError as error:
            answer = Failed(call.id, str(error), error.frames, error.kind)
        finally:
            self._limit_cpu(None)
            if os.getpid() != self._pid:
                _end_fork(self._hook)
        send(self._writer, answer)
        await self._writer.drain()

    def _limit_cpu(self, seconds: float | None) -> None:
        """Raises `_TooMuchCpu` after so much CPU time; ends the process a little later if that has no effect.

        The second happens in C code, such as Python's own arithmetic of large integers.
        """
        if self.limits.cpu_s is None:
            return
        self._limited = seconds is not None
        signal.signal(signal.SIGPROF, self._too_much_cpu)
        signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds or 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds + _AFTER_CPU_S if seconds else 0)

    def _too_much_cpu(self, number: int, frame: object) -> None:
        if self._limited:  # else the call has just ended
            raise _TooMuchCpu


class _TooMuchCpu(BaseException):
    """Not an Exception: libraries catch those broadly."""


def _end_fork(hook: Hook) -> NoReturn:
    """Ends a fork that the function has made and that has returned from it: only one process may answer."""
    print(f"{hook.what} {hook.path!r} forked, and its fork returned: the fork ends here", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
