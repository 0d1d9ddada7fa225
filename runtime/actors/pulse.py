"""A process's pulse: when its event loop last ran, where its node agent can see it.

A native call that holds Python's lock stops every thread of a process, a watchdog's too. Only another process can
notice that. The node agent keeps a file in memory with a slot for each of its processes (`node/agent/hangs.py`), and
tells each its own in the environment.
"""

from __future__ import annotations

import faulthandler
import logging
import mmap
import os
import signal
import struct
import sys
import time

log = logging.getLogger(__name__)

VARIABLE = "VERST_PULSE"  # "/proc/PID/fd/N:SLOT"
# Makes a process write the stack of each of its threads to stderr. A handler in C does it, without Python's lock.
SHOW_STACK = signal.SIGRTMIN + 3
_SLOT = struct.Struct(
    "<dd"
)  # the loop's last run (seconds of the monotonic clock), and when it counts as hung (s)


class Pulse:
    """The slot of this process."""

    def __init__(self, path: str, slot: int) -> None:
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._slot = slot
        faulthandler.register(SHOW_STACK, file=sys.__stderr__ or 2, all_threads=True)

    def beat(self, hang_s: float) -> None:
        """The loop runs now. It counts as hung when it has not run for `hang_s` seconds."""
        write(self._memory, self._slot, time.monotonic(), hang_s)

    def stop(self) -> None:
        """Nothing runs that is to be watched."""
        write(self._memory, self._slot, 0.0, 0.0)


_mine: list[Pulse] = []


def own_pulse() -> Pulse | None:
    """The pulse of this process; None without a node agent. Processes that this one starts have none."""
    if not _mine and (where := os.environ.pop(VARIABLE, "")):
        path, _, slot = where.rpartition(":")
        try:
            _mine.append(Pulse(path, int(slot)))
        except OSError as error:
            log.warning("the node agent cannot watch this process: %s", error)
    return _mine[0] if _mine else None


def read(memory: mmap.mmap, slot: int) -> tuple[float, float]:
    """The last run of a slot's loop, 0 if none is watched, and its limit."""
    last, hang_s = _SLOT.unpack_from(memory, slot * _SLOT.size)
    return last, hang_s


def write(memory: mmap.mmap, slot: int, last: float, hang_s: float) -> None:
    """Writes a slot."""
    _SLOT.pack_into(memory, slot * _SLOT.size, last, hang_s)


def size_of(slots: int) -> int:
    """The bytes of so many slots."""
    return max(1, slots) * _SLOT.size
