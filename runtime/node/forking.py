"""Processes that start as forks of their agent, which has imported what they run: in milliseconds, sharing its memory.

A new interpreter takes a quarter of a second to import what an actor's process needs, and 20 MiB that are the same in
all of them. Only an agent with one thread may fork, for no other thread's locks exist in the fork.
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
    """A fork of this process, as `subprocess.Popen` shows a child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self) -> int:
        """Its exit code, or minus the number of the signal that killed it."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Harmless when it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


def prepare(module: str) -> bool:
    """Imports what the forks run. False when this process has more than one thread and so cannot fork.

    numpy is imported for all, without the threads that its linear algebra would start.
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
    gc.freeze()  # or the forks' collections would write to the pages that all share
    return len(os.listdir("/proc/self/task")) == 1


def start(
    name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, cpus: Sequence[int] = ()
) -> Child:
    """As `supervise.start`, for `argv` = [python, "-m", module, …]: the module's `main()` gives the exit code.

    Call `prepare(module)` before. Raises OSError when there can be no further process.
    """
    agent = os.getpid()
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            _run(agent, argv, env, fd, cpus)
        with contextlib.suppress(OSError):  # it does so too: whoever is first
            os.setpgid(pid, pid)
    finally:
        os.close(fd)
    return Child(name, Forked(pid), log)


def _run(agent: int, argv: Sequence[str], env: Mapping[str, str], log: int, cpus: Sequence[int]) -> NoReturn:
    """The fork's life. Nothing of the agent's stack may run here, so it ends with `_exit`."""
    code = 1
    try:
        supervise.in_child(agent, cpus)
        os.setpgid(0, 0)
        _take_over(argv, env, log)
        code = _exit_code(sys.modules[argv[2]].main)
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at the end of any process
        atexit._run_exitfuncs()
    except BaseException:  # as the interpreter's own end does; further up is the agent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _take_over(argv: Sequence[str], env: Mapping[str, str], log: int) -> None:
    """What exec would have done: files, environment, arguments, and what others see of the process."""
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
        random.seed()  # Python's own does so by itself


def _show(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Puts the command line and the environment where /proc shows them: by those a process of a run is found.

    Where the agent's own were; what does not fit is left out. The environment that counts is elsewhere by now.
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
