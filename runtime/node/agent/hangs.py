"""Ends processes whose event loop hangs and that cannot say so themselves.

A member's own watchdog (`actors/watchdog.py`) is a thread: it stands still while a native call, such as a
backtracking regular expression, holds Python's lock. The agent sees the process's pulse (`actors/pulse.py`). It lets
the process write its stacks, which takes no lock, and kills it; what follows is as after any other failure.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path

from verst.runtime.actors import pulse
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import Watched

# In limits of the process itself. The watchdog's thread, where it can run, ends the process after two.
_PATIENCE = 2.5
_STACK_S = 1.0  # for the process to write its stacks
_GAP_S = 5.0  # between two looks: this agent did not run either


class Hangs:
    """The pulses of a node's processes."""

    def __init__(self, here: ThisNode) -> None:
        """Gives each of the node's processes a slot, in its environment."""
        self._here = here
        size = pulse.size_of(len(here.watched))
        self._fd = os.memfd_create("verst-pulses")
        os.ftruncate(self._fd, size)
        self._memory = mmap.mmap(self._fd, size)
        for slot, watched in enumerate(here.watched):
            watched.env[pulse.VARIABLE] = f"/proc/{os.getpid()}/fd/{self._fd}:{slot}"
        self._looked_at = time.monotonic()
        self._awake = [0.0] * len(
            here.watched
        )  # by slot: when the process, or this one, last went on after a stop
        self._asked: dict[int, float] = {}  # by slot: when a hung process was asked for its stacks

    def look(self, now: float) -> None:
        """Ends the processes that have hung for too long. `now` is monotonic."""
        if now - self._looked_at > _GAP_S:
            self._awake = [now] * len(self._awake)
        self._looked_at = now
        for slot, watched in enumerate(self._here.watched):
            last, hang_s = pulse.read(self._memory, slot)
            if not last:
                continue
            if watched.child is None or watched.child.code is not None:
                pulse.write(self._memory, slot, 0.0, 0.0)
                self._asked.pop(slot, None)
            elif now - max(last, self._awake[slot]) > _PATIENCE * hang_s:
                self._hung(slot, watched, now, now - last)

    def _hung(self, slot: int, watched: Watched, now: float, hung_s: float) -> None:
        child = watched.child
        assert child is not None
        if _is_stopped(child.popen.pid):  # by a debugger, or by a cluster that has suspended the job
            self._awake[slot] = now
        elif slot not in self._asked:
            self._asked[slot] = now
            self._here.say(
                f"{child.name}: its event loop has hung for {hung_s:.0f} s; its stacks go to {child.log}"
            )
            child.popen.send_signal(pulse.SHOW_STACK)
        elif now - self._asked[slot] >= _STACK_S:
            child.because = (
                f"its event loop hung for {hung_s:.0f} s, in a call that did not let any other thread run; its stacks "
                "are in its log"
            )
            child.popen.send_signal(signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state in (b"T", b"t")
