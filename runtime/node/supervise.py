"""Starts processes so that none outlives its agent, and ends them with all their descendants. Linux only.

Each process leads its own process group and dies with the agent (PR_SET_PDEATHSIG). The agent is the
subreaper of all descendants (PR_SET_CHILD_SUBREAPER): a grandchild whose parent dies becomes the agent's
child, whatever session it is in. So no process escapes when the agent ends them all.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # needed only to end processes; importing it would make each start slower
    import psutil

# The agent takes these signals one at a time, with sigtimedwait; no handler ever runs.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AWAITED_SIGNALS = (signal.SIGCHLD, signal.SIGUSR2, *STOP_SIGNALS)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ORPHAN_GRACE_S = 1.0
_KILL_WAIT_S = 3.0  # for the kernel to end killed processes; only uninterruptible I/O takes longer

_libc = ctypes.CDLL(None, use_errno=True)


class Started(Protocol):
    """The part of `subprocess.Popen` that is used here; `forking.py` implements it for forks."""

    pid: int
    returncode: int | Any

    def wait(self) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


class Child:
    """One started process, its log, and how it ended."""

    def __init__(self, name: str, popen: Started, log: Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log
        self.because: str | None = None  # why the agent has killed it

    @property
    def code(self) -> int | None:
        """Its exit code, or minus the number of the signal that killed it; None while it runs."""
        return self.popen.returncode

    def ending(self) -> str:
        """How it ended, in words."""
        return self.because or describe_ending(self.code)

    def last_lines(self, count: int = 30) -> list[str]:
        """The last lines of its log."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64 * 1024))
            return file.read().decode(errors="replace").splitlines()[-count:]


def describe_ending(code: int | None) -> str:
    """An exit code in words: "exit code 3", "killed by SIGSEGV (Segmentation fault)", …"""
    if code is None:
        return "still running"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name} ({signal.strsignal(-code)})"


def prepare_supervisor() -> None:
    """Makes this process the subreaper and blocks the awaited signals. Call once, before the first start."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED_SIGNALS)


def in_child(agent: int, cpus: Sequence[int]) -> None:
    """Sets up a new process between fork and exec, so that it dies with its agent and takes all signals.

    It may run on `cpus`, or if that is empty on all of the agent's.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != agent:  # the agent died before the line above
        os._exit(1)
    # Slurm sends SIGUSR2 to every process of a job. It is for the agent, which passes it on to the right
    # process.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, AWAITED_SIGNALS)
    if cpus:
        os.sched_setaffinity(0, cpus)


def start(
    name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, cpus: Sequence[int] = ()
) -> Child:
    """Starts a process on `cpus` (empty: on all of ours). Appends its stdout and stderr to `log`.

    Raises OSError if it cannot be started.
    """
    agent = os.getpid()
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            env=dict(env),
            process_group=0,
            preexec_fn=lambda: in_child(agent, cpus),  # safe, since the agent has one thread
        )
    finally:
        os.close(fd)
    return Child(name, popen, log)


def wait_signal(timeout_s: float) -> signal.Signals | None:
    """Waits for the next awaited signal. Returns None after `timeout_s` seconds."""
    info = signal.sigtimedwait(AWAITED_SIGNALS, max(0.0, timeout_s))
    return None if info is None else signal.Signals(info.si_signo)


def reap(children: Sequence[Child]) -> list[Child]:
    """Collects ended processes. Returns those of `children` that ended since the last call.

    Ended orphans that were adopted are collected silently.
    """
    by_pid = {child.popen.pid: child for child in children}
    ended: list[Child] = []
    while True:
        try:
            info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return ended
        if info is None:
            return ended
        child = by_pid.get(info.si_pid)
        if child is None:
            os.waitpid(info.si_pid, 0)
        else:
            child.popen.wait()
            ended.append(child)


def kill_remains(child: Child, env: Mapping[str, str]) -> None:
    """Kills what an ended process left behind: its group, and adopted orphans whose environment has `env`."""
    import psutil

    _kill_group(child.popen.pid)
    for orphan in psutil.Process().children():
        try:
            environ = orphan.environ()
            if all(environ.get(key) == value for key, value in env.items()):
                orphan.kill()
        except psutil.Error:  # it has ended meanwhile
            continue


def stop(children: Sequence[Child], grace_s: float) -> list[str]:
    """Ends `children` and all their descendants: first with SIGTERM, after `grace_s` seconds with SIGKILL.

    SIGTERM goes to the children, then to the processes that they leave behind. The children also get SIGHUP,
    for those that must not end at a cluster's own SIGTERM (`MemberProcess`). Returns, in words, the processes
    that are there even after SIGKILL (in uninterruptible I/O).
    """
    import psutil

    for child in children:
        if child.code is None:
            child.popen.send_signal(signal.SIGTERM)
            child.popen.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + grace_s
    while any(child.code is None for child in children) and (left := deadline - time.monotonic()) > 0:
        wait_signal(min(left, 0.2))
        reap(children)
    if all(child.code is not None for child in children):
        for orphan in _descendants():  # helper processes whose parent is gone
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.terminate()
        deadline = min(deadline, time.monotonic() + _ORPHAN_GRACE_S)
    if not _wait_for_none(children, deadline - time.monotonic()):
        for child in children:
            _kill_group(child.popen.pid)
        deadline = time.monotonic() + _KILL_WAIT_S
        while (alive := _descendants()) and time.monotonic() < deadline:
            for process in alive:  # repeatedly: one may have forked meanwhile
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            _wait_for_none(children, 0.1)
    return [str(process) for process in _descendants()]


def _wait_for_none(children: Sequence[Child], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        reap(children)
        if not _descendants():
            return True
        if (left := deadline - time.monotonic()) <= 0:
            return False
        wait_signal(min(left, 0.2))


def _descendants() -> list[psutil.Process]:
    import psutil

    return [p for p in psutil.Process().children(recursive=True) if _lives(p)]


def _lives(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
