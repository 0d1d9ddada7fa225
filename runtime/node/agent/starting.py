"""Starts the processes that are due, as new processes or as forks of the agent."""

from __future__ import annotations

import os
import sys

from verst.runtime.node import forking, supervise
from verst.runtime.node.agent.failing import Failing
from verst.runtime.node.agent.outcome import Outcome
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import Watched
from verst.runtime.run.plan import Process


class Starting:
    """Starts a node's processes, for the first time and again."""

    def __init__(self, here: ThisNode, failing: Failing) -> None:
        self._here = here
        self._failing = failing
        self._forkable: dict[str, bool] = {}  # by module

    def start_if_due(self, watched: Watched, now: float) -> Outcome | None:
        """Starts the process if it is due. If it cannot be started, the run fails. `now` is monotonic."""
        if watched.start_at is None or watched.start_at > now:
            return None
        watched.start_at, watched.started_at = None, now
        process = watched.process
        try:
            env = {**os.environ, **watched.env}
            start = forking.start if self._can_fork(process) else supervise.start
            watched.child = start(process.name, process.argv, env, watched.log, watched.cpus)
        except OSError as error:
            why = f"{process.name} cannot be started: {process.argv[0]}: {error.strerror}"
            return self._failing.fail(why, 127, [])
        return None

    def _can_fork(self, process: Process) -> bool:
        if not process.forks or process.argv[0] != sys.executable:
            return False
        module = process.argv[2]
        if module not in self._forkable:
            self._forkable[module] = forking.prepare(module)
            if not self._forkable[module]:
                self._here.say(f"{module} started a thread here: its processes start anew, not as forks")
        return self._forkable[module]
