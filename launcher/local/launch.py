"""Launches a run on this machine through torchx's `local_cwd` scheduler, and watches it until it ends.

torchx only starts the node agents: when one dies, it neither stops the others nor retries. This module
watches the agents and the run's `ended` file. Whatever happens (a good end, a crash, Ctrl-C, SIGTERM, its own
death), it leaves no process behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType

import psutil
from torchx.runner import Runner
from torchx.schedulers import local_scheduler

from verst.launcher.local.app import make_app
from verst.launcher.runs.ending import Ending, last_lines, last_words, read_ending
from verst.runtime.node.agent import GRACE_S
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan

_FIND_S = 5.0
_POLL_S = 0.25
# Together these are less than 15 s, the time within which a run must be gone.
_LEAVE_S = GRACE_S + 4.0  # for the agents to end their processes, by SIGTERM and then SIGKILL if need be
_KILL_S = 2.0  # for the kernel to remove killed processes
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Agent:
    """A node agent started by torchx."""

    group: str
    node: int
    process: psutil.Process


def launch(folder: RunFolder, plan: Plan, update: Callable[[], None]) -> Ending:
    """Runs the plan until it ends, calling `update` a few times a second. Returns how it ended.

    Must be called from the main thread, since it handles signals meanwhile. When it returns, no process of
    the run is left.
    """
    generation = folder.generation
    caught = _SignalNote()
    # Agents print here until they have their own logs. If an agent fails to start, this is the only trace.
    agent_logs = folder.logs / f"life-{generation}" / "agents"
    logging.getLogger("torchx").setLevel(logging.ERROR)
    _become_subreaper()
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    # Made before `caught` installs its handlers: torchx's scheduler installs handlers that raise.
    scheduler = local_scheduler.create_scheduler("verst")
    with Runner("verst", {"local_cwd": lambda session_name, **_: scheduler}) as runner, caught:
        handle = runner.run(make_app(folder, plan), scheduler="local_cwd", cfg={"log_dir": str(agent_logs)})
        signalled = True
        try:
            agents = _agents(plan)
            ending = _watch(folder, generation, agents, caught, update)
            signalled = read_ending(folder, generation) is None
        finally:
            _end_all(signalled, ours)
            _close_logs(runner, handle)
    update()
    return ending if ending.lines or ending.ok else replace(ending, lines=last_words(folder, generation))


def _close_logs(runner: Runner, handle: str) -> None:
    """Lets torchx close its log files. It also writes a file that nobody needs, which may fail on a full disk."""
    with contextlib.suppress(OSError):
        runner.cancel(handle)


class _SignalNote:
    """Context manager that records the first signal instead of dying of it, and restores the handlers on exit."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def __enter__(self) -> _SignalNote:
        for number in _SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)


def _watch(
    folder: RunFolder,
    generation: int,
    agents: list[_Agent],
    caught: _SignalNote,
    update: Callable[[], None],
) -> Ending:
    """Waits, as long as the run takes, for its end, the death of an agent or a signal. Returns how it ended."""
    while True:
        update()
        ending = read_ending(folder, generation)
        if ending is not None:
            return ending
        if caught.signal is not None:
            return Ending(ok=False, reason=f"received {caught.signal.name}", signal=caught.signal)
        dead = [agent for agent in agents if not _lives(agent.process)]
        if dead:
            # The agent may have recorded the end after the read above.
            return read_ending(folder, generation) or _without_a_word(folder, generation, dead[0])
        time.sleep(_POLL_S)


def _without_a_word(folder: RunFolder, generation: int, agent: _Agent) -> Ending:
    reason = f"the node agent of {agent.group} node {agent.node} died without giving a reason"
    if (fault := folder.write_fault()) is not None:
        reason += f"; the run folder cannot be written ({fault})"
    logs = (folder.logs / f"life-{generation}" / "agents").glob(f"**/{agent.group}/{agent.node}/combined.log")
    return Ending(ok=False, reason=reason, lines=[line for log in logs for line in last_lines(log)])


def _agents(plan: Plan) -> list[_Agent]:
    """Finds the replicas that torchx has just started: the child processes with the command line of an agent.

    It retries, because a process has no command line for a moment after its start, longer on a busy machine.
    """
    wanted = {(group, node) for group, nodes in plan.groups.items() for node in range(len(nodes))}
    deadline = time.monotonic() + _FIND_S
    while True:
        agents = []
        for child in psutil.Process().children():
            command = child.cmdline()
            if "verst.runtime.node.agent" in command:
                place = command[command.index("--group") + 1], int(command[command.index("--node") + 1])
                agents.append(_Agent(*place, child))
        missing = wanted - {(agent.group, agent.node) for agent in agents}
        if not missing:
            return agents
        if time.monotonic() > deadline:
            raise RuntimeError(f"torchx did not start the node agents {sorted(missing)}")
        time.sleep(0.01)


def _end_all(signalled: bool, ours: set[int]) -> None:
    """Ends the agents and all their descendants. Agents of a run that has ended exit by themselves.

    `signalled`: the run has not ended, so send SIGTERM first. `ours`: processes that do not belong to the
    run. This process is a subreaper and inherits orphans, so no process can escape.
    """
    agents = _descendants(ours, recursive=False)
    if signalled:
        for agent in agents:
            with contextlib.suppress(psutil.NoSuchProcess):
                agent.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _LEAVE_S
    while _descendants(ours) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = _descendants(ours)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_KILL_S)


def _descendants(ours: set[int], recursive: bool = True) -> list[psutil.Process]:
    """The live descendants of this process that belong to the run."""
    return [
        child
        for child in psutil.Process().children(recursive=recursive)
        if child.pid not in ours and _lives(child)
    ]


def _lives(process: psutil.Process) -> bool:
    """Whether the process still runs. A zombie does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _become_subreaper() -> None:
    """Makes orphaned descendants children of this process, instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
