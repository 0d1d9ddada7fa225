"""Watches a member's event loop. If it hangs, the watchdog logs where, and later ends the process.

A member answers calls, renews its lease and receives cancellations on its event loop. A method that blocks
the loop (a lock, a long computation) makes the member look dead to the others when its lease runs out. The
watchdog's thread then writes every thread's stack to stderr. Under a node agent it also ends the process some time
later: the others have given it up anyway, and the agent starts it again or ends the run, as the plan says.

A native call that holds Python's lock stops this thread, too. Then the node agent notices that the process has no
pulse (`pulse.py`), and does the same from outside.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from verst.runtime.actors.pulse import own_pulse

log = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE


_of_loop: dict[asyncio.AbstractEventLoop, Watchdog] = {}


def watch(name: str, hang_s: float) -> Callable[[], None]:
    """Watches the running loop. Returns a function that stops the watching; call it on the loop.

    `name` is for messages. The stacks are written after the loop has not run for `hang_s` seconds. Members on
    the same loop share one thread, which uses the first one's `hang_s`.
    """
    loop = asyncio.get_running_loop()
    dog = _of_loop.get(loop) or _of_loop.setdefault(loop, Watchdog(name, hang_s))
    dog.members += 1

    def stop() -> None:
        dog.members -= 1
        if not dog.members:
            _of_loop.pop(loop).stop()

    return stop


class Watchdog:
    """Watches the running loop from its start to `stop`."""

    def __init__(self, name: str, hang_s: float) -> None:
        self.members = 0
        self._name = name
        self._hang_s = hang_s
        self._interval_s = hang_s / 5
        self._loop = asyncio.get_running_loop()
        self._beat_at = time.monotonic()
        self._pulse = own_pulse()
        self._timer = self._loop.call_soon(self._beat)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"{name}-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops watching. Call it on the loop."""
        self._timer.cancel()
        self._stopped.set()
        if self._pulse is not None:
            self._pulse.stop()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        if self._pulse is not None:
            self._pulse.beat(self._hang_s)
        self._timer = self._loop.call_later(self._interval_s, self._beat)

    def _watch(self) -> None:
        told = False
        looked_at = time.monotonic()
        while not self._stopped.wait(self._interval_s):
            now = time.monotonic()
            # This thread did not run either: the process was stopped, or starved.
            if now - looked_at > 2 * self._interval_s:
                self._beat_at = max(self._beat_at, now - self._interval_s)
            looked_at = now
            hung_s = now - self._beat_at
            if hung_s < self._hang_s:
                told = False
            elif not told:
                told = True
                self._tell(hung_s)
            elif hung_s >= 2 * self._hang_s and "VERST_GENERATION" in os.environ:
                log.error("%s: ends this process: its event loop has hung for %.0f s", self._name, hung_s)
                os._exit(EXIT_CODE)

    def _tell(self, hung_s: float) -> None:
        log.error("%s: its event loop has not run for %.1f s; each thread's stack:", self._name, hung_s)
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
