"""Launches a run on this machine through torchx's `local_cwd` scheduler and sees it to its end.

torchx starts the node agents. It neither stops the siblings when one dies nor retries, so this does the
rest: it watches the agents and the run's `ended` file, and whatever happens (good end, a crash, Ctrl-C,
SIGTERM, its own death) leaves no process behind.
"""

from __future__ import annotations

import ctypes
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import psutil
from torchx.runner import Runner
from torchx.schedulers import local_scheduler

from verst.launcher.app import make_app
from verst.launcher.ending import Ending, read_ending
from verst.runtime.plan import Plan
from verst.runtime.run_folder import RunFolder

_POLL_S = 0.25
# Together under the 15 s in which a run must be gone.
_LEAVE_S = 5.0  # for agents to leave by themselves after the run has ended
_TERM_S = 7.0  # for agents to end their processes after SIGTERM
_KILL_S = 2.0  # for the kernel to take away what was killed
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class _Agent:
    """A node agent started by torchx."""

    group: str
    node: int
    process: psutil.Process

    @property
    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        try:
            return self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def launch(folder: RunFolder, plan: Plan, update: Callable[[], None]) -> Ending:
    """Runs the plan to its end, calling `update` a few times a second; returns how it ended.

    Call it from the main thread: it handles signals while it runs. No process of the run is alive after it.
    """
    generation = folder.generation
    caught = _SignalNote()
    # What an agent prints before it has its own log is the only trace of a start that fails.
    agent_logs = folder.logs / f"attempt-{generation}" / "agents"
    logging.getLogger("torchx").setLevel(logging.ERROR)
    _become_subreaper()
    ours = {child.pid for child in psutil.Process().children(recursive=True)}
    by_itself = False
    with Runner("verst", {"local_cwd": local_scheduler.create_scheduler}) as runner, caught:
        handle = runner.run(make_app(folder, plan), scheduler="local_cwd", cfg={"log_dir": str(agent_logs)})
        agents = _agents(plan)
        try:
            ending = _watch(folder, generation, agents, caught, update)
            by_itself = ending.by_itself
        finally:
            _end_all(runner, handle, agents, by_itself, ours)
    update()
    return ending


class _SignalNote:
    """Notes the first signal instead of dying of it; the previous handlers come back afterwards."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _SignalNote:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
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
    """Waits for the run's end, for the death of an agent or for a signal: as long as the run takes."""
    while True:
        update()
        ending = read_ending(folder, generation)
        if ending is not None:
            return ending
        if caught.signal is not None:
            return Ending(ok=False, reason=f"{caught.signal.name} was received", signal=caught.signal)
        dead = [agent for agent in agents if not agent.alive]
        if dead:
            # It may have written why between the two looks.
            return read_ending(folder, generation) or _without_a_word(folder, generation, dead[0])
        time.sleep(_POLL_S)


def _without_a_word(folder: RunFolder, generation: int, agent: _Agent) -> Ending:
    reason = f"the node agent of {agent.group} node {agent.node} died without saying why"
    logs = folder.logs / f"attempt-{generation}" / "agents"
    said = sorted(logs.glob(f"**/{agent.group}/{agent.node}/stderr.log"))
    return Ending(ok=False, reason=reason, log=str(said[-1]) if said else None)


def _agents(plan: Plan) -> list[_Agent]:
    """The replicas that torchx has just started: our children that carry an agent's command line."""
    wanted = [(group, node) for group, nodes in plan.groups.items() for node in range(len(nodes))]
    agents = []
    for child in psutil.Process().children():
        command = child.cmdline()
        if "verst.runtime.agent" in command:
            place = command[command.index("--group") + 1], int(command[command.index("--node") + 1])
            agents.append(_Agent(*place, child))
    missing = set(wanted) - {(agent.group, agent.node) for agent in agents}
    if missing:
        raise RuntimeError(f"torchx did not start the agents of {sorted(missing)}")
    return agents


def _end_all(runner: Runner, handle: str, agents: list[_Agent], by_itself: bool, ours: set[int]) -> None:
    """Ends the agents with all below them. After an ending of its own the run has a moment to leave by itself."""
    if by_itself:
        _await_end(agents, _LEAVE_S)
    for agent in agents:
        if agent.alive:
            agent.process.send_signal(signal.SIGTERM)
    _await_end(agents, _TERM_S)
    # As subreaper this process inherits what an agent left behind, so nothing can hide.
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in ours]
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=_KILL_S)
    runner.cancel(handle)


def _await_end(agents: list[_Agent], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(agent.alive for agent in agents):
        time.sleep(0.05)


def _become_subreaper() -> None:
    """Orphans among our descendants become our children instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
