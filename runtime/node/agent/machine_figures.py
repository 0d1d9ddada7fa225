"""Writes the machine's figures to the run folder, for the dashboard (`node/machine_use.py`)."""

from __future__ import annotations

import msgspec

from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.machine_use import EVERY_S, Meter, use_path
from verst.runtime.run.folder import write_atomically


class MachineFigures:
    """Measures every ten seconds. If that fails (a full disk), says so once and goes on trying."""

    def __init__(self, here: ThisNode) -> None:
        self._here = here
        self._meter = Meter(here.folder.root)
        self._path = use_path(here.folder, here.group, here.node)
        self._next = 0.0
        self._failed = False

    def look(self, now: float) -> None:
        """Measures, unless the last look was recent. `now` is monotonic."""
        if now < self._next:
            return
        self._next = now + EVERY_S
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self._path, msgspec.json.encode(self._meter.measure()), durable=False)
            self._failed = False
        except OSError as error:
            if not self._failed:
                self._here.say(f"the use of this machine cannot be written: {error}")
            self._failed = True
