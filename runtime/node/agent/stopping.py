"""Requests to stop: signals, and `verst cancel`.

A hard signal ends this node at once. A soft one, which a cluster sends some time before it takes the node
away, asks the run to stop at a step boundary and save: the agent of the controller's node passes it on to the
controller.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping

from verst.runtime.node.agent.outcome import Outcome
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.run.ending import STOPPED


class Stopping:
    """The received signals, and the time by which the run must have stopped if it was asked to."""

    def __init__(self, here: ThisNode, soft_signals: Mapping[signal.Signals, float]) -> None:
        """`soft_signals`: signals that ask the run to stop and save -> the seconds that it has for that."""
        self.signals: list[signal.Signals] = []  # received, in order
        self.by: float | None = None  # monotonic; None: nobody has asked
        self.for_good = False  # no further life of the run follows
        self._here = here
        self._soft_signals = soft_signals

    def received(self, number: signal.Signals) -> Outcome | None:
        """Handles a signal. Returns an outcome if it ends this node at once."""
        self.signals.append(number)
        allowed_s = self._soft_signals.get(number)
        if allowed_s is None or self._here.follows:  # the run goes on without this engine
            self._here.say(f"received {number.name}: stopping")
            return Outcome("stopped", 128 + number)
        self._ask(f"received {number.name}", allowed_s)
        return None

    def cancel(self, who: str) -> None:
        """Asks the run to stop for good. Only the first call has an effect. `who` asked, for the log."""
        if not self.for_good:
            self.for_good = True
            self._ask(f"`verst cancel`: {who}", max(self._soft_signals.values(), default=0.0))

    def repeat(self) -> None:
        """Asks the controller again, if the run was asked to stop: it may not have been listening yet."""
        if self.by is not None:
            self._signal_leader()

    def is_late(self, now: float) -> Outcome | None:
        """Ends the run if it was asked to stop and its time is over. `now` is monotonic."""
        if self.by is None or now < self.by:
            return None
        why = "was asked to stop and could not save in time; the last checkpoint counts"
        return self._here.end_run(STOPPED, why, resumes=not self.for_good)

    def _ask(self, why: str, allowed_s: float) -> None:
        by = time.monotonic() + allowed_s
        if self.by is not None:
            self.by = min(self.by, by)
            return
        self.by = by
        self._here.say(f"{why}: the run has {allowed_s:.0f} s to stop and save")
        if self._here.leads:
            message = f"{why}; {allowed_s:.0f} s to stop at a step boundary and save"
            self._here.event("stop_asked", message=message)
        self._signal_leader()

    def _signal_leader(self) -> None:
        for watched in self._here.watched:
            if watched.process.on_exit == "ends_run" and watched.child and watched.child.code is None:
                watched.child.popen.send_signal(signal.SIGUSR2)
