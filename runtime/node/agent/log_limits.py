"""Limits the size of the node's logs: a log that is too large is set aside (`run/log_lines.py`)."""

from __future__ import annotations

import time
from pathlib import Path

from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.run.log_lines import set_aside

EVERY_S = 30.0  # between two looks at the sizes


class LogLimits:
    """Watches the logs in the node's log folder."""

    def __init__(self, here: ThisNode, logs: Path, max_bytes: int, keep: int) -> None:
        """`keep`: how many earlier logs to keep for each process."""
        self._here = here
        self._logs = logs
        self._max_bytes = max_bytes
        self._keep = keep
        self._looked_at = time.monotonic()

    def look(self, now: float) -> None:
        """Sets large logs aside. Does nothing if the last look was recent. `now` is monotonic."""
        if now - self._looked_at < EVERY_S:
            return
        self._looked_at = now
        for log in self._logs.glob("*.log"):
            try:
                set_aside(log, self._max_bytes, self._keep)
            except OSError as error:  # a full disk, or a passing fault: the log goes on growing
                self._here.say(f"cannot set {log.name} aside: {error}")
