"""Starts processes as forks of their agent, which has already imported their modules.

A fork starts in milliseconds and shares the agent's memory. A new interpreter takes a quarter of a second to
import the modules of an actor's process, and 20 MiB that are the same in all of them. Only an agent with one
thread may fork: locks that other threads hold would never be released in the fork.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from verst.runtime.node import supervise
from verst.runtime.node.supervise import Child

_ONE_THREAD = "OPENBLAS_NUM_THREADS"


class Forked:
    """A fork of this process, with the interface of `supervise.Started` (like `subprocess.Popen`)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        """Waits for its end. Returns its exit code, or minus the number of the signal that killed it."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal. Does nothing if the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


def prepare(module: str) -> bool:
    """Imports the module that forks will run. Returns False if this process cannot fork.

    It cannot if it has more than one thread. Also imports numpy for all forks, without the threads that its
    linear algebra would start.
    """
    before = os.environ.get(_ONE_THREAD)
    os.environ[_ONE_THREAD] = "1"
    try:
        importlib.import_module("numpy")
    finally:
        if before is None:
            del os.environ[_ONE_THREAD]
        else:
            os.environ[_ONE_THREAD] = before
    importlib.import_module(module)
    gc.collect()
    gc.freeze()  # else the forks' garbage collections would write to the shared pages
    return len(os.listdir("/proc/self/task")) == 1


def start(
    name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, cpus: Sequence[int] = ()
) -> Child:
    """Like `supervise.start`, but forks and calls `main()` of the module, which returns the exit code.

    `argv` is [python, "-m", module, …]. Call `prepare(module)` before. Raises OSError if no further process
    can be made.
    """
    agent = os.getpid()
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            _run(agent, argv, env, fd, cpus)
        with contextlib.suppress(OSError):  # the fork does this too, whichever is first
            os.setpgid(pid, pid)
    finally:
        os.close(fd)
    return Child(name, Forked(pid), log)


def _run(agent: int, argv: Sequence[str], env: Mapping[str, str], log: int, cpus: Sequence[int]) -> NoReturn:
    """Runs in the fork. It ends with `_exit`, since nothing further up the agent's stack may run here."""
    code = 1
    try:
        supervise.in_child(agent, cpus)
        os.setpgid(0, 0)
        _take_over(argv, env, log)
        code = _exit_code(sys.modules[argv[2]].main)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, like any process that ends
        atexit._run_exitfuncs()
    except BaseException:  # as the interpreter does at its end; the next stack frame is the agent's
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_over(argv: Sequence[str], env: Mapping[str, str], log: int) -> None:
    """Does the work of exec: sets open files, environment, arguments, and what /proc shows of them."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(env)
    _show(argv, env)
    sys.argv = [str(sys.modules[argv[2]].__file__), *argv[3:]]
    sys.path[1:1] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place not in sys.path]
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()  # Python's own `random` does this by itself


def _show(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Makes /proc show the fork's command line and environment, by which the processes of a run are found.

    Writes them over the agent's; text that does not fit is left out. The environment that the process uses is
    elsewhere by now.
    """
    fields = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()
    arguments_start, arguments_end, env_start, env_end = map(int, fields[45:49])
    first = sorted(env.items(), key=lambda item: not item[0].startswith("VERST_"))
    for texts, start, end in (
        (argv, arguments_start, arguments_end),
        ([f"{name}={value}" for name, value in first], env_start, env_end),
    ):
        shown = b"\0".join(text.encode(errors="surrogateescape") for text in texts)[: end - start - 1]
        ctypes.memmove(start, shown.ljust(end - start, b"\0"), end - start)


def _exit_code(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
