"""Decides what the end of a process means for the run (`Process.on_exit`), and restarts processes."""

from __future__ import annotations

import time

from verst.runtime.node import supervise
from verst.runtime.node.agent.failing import Failing
from verst.runtime.node.agent.outcome import Outcome
from verst.runtime.node.agent.stopping import Stopping
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import Watched
from verst.runtime.node.supervise import Child
from verst.runtime.run.ending import CANNOT_WRITE, GAVE_UP, HOPELESS, STOPPED
from verst.runtime.run.log_lines import without_stamp

# After a life this long, the pauses before restarts are short again (on_exit "restart_always").
_LONG_LIFE_S = 60.0
# With on_exit "restart", each half hour of running gives back one of the restarts (max_restarts), so that a few
# failures in a life of weeks do not add up.
_GIVEN_BACK_S = 1800.0
_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class ProcessEnds:
    """Handles ended processes: the run ends, goes on without the process, or the process starts again."""

    def __init__(self, here: ThisNode, stopping: Stopping, failing: Failing, early_exit_s: float) -> None:
        """`early_exit_s`: how long before the run's end a process may exit with 0 without having failed."""
        self._here = here
        self._stopping = stopping
        self._failing = failing
        self._early_exit_s = early_exit_s

    def ended(self, watched: Watched) -> Outcome | None:
        """Handles the end of a process. Returns an outcome if the agent is to end too."""
        child = watched.child
        assert child is not None
        ends_run = watched.process.on_exit == "ends_run"
        if watched.process.on_exit == "ignored":
            self._here.say(f"{child.name}: {child.ending()}; the run goes on without it (log: {child.log})")
            return None
        if child.code == 0 and ends_run:
            return self._here.end_run(0, f"{child.name} finished")
        if child.code == STOPPED and ends_run:
            resumes = not self._stopping.for_good
            return self._here.end_run(STOPPED, "stopped when asked to, and saved", resumes=resumes)
        if child.code == GAVE_UP and self._here.follows:
            self._here.say(f"{child.name} has waited long enough: this node is given back")
            return Outcome("stopped", 0)
        if child.code == CANNOT_WRITE:  # its last line says what it could not write, and why
            why = " ".join(map(without_stamp, child.last_lines(1)))[:300]
            return self._unexpected(watched, f"{child.ending()}, {why}")
        if child.code == HOPELESS and not ends_run:  # a start again would fail the same way
            return self._failing.fail_process(watched, child.ending(), child.last_lines())
        if child.code != 0 or watched.process.on_exit == "restart_always":
            return self._unexpected(watched, child.ending())
        watched.quiet_until = time.monotonic() + self._early_exit_s
        return None

    def check_early_exit(self, watched: Watched, now: float) -> Outcome | None:
        """Fails a process that exited with 0 while the run went on for too long. `now` is monotonic."""
        if watched.quiet_until is None or watched.quiet_until > now:
            return None
        watched.quiet_until = None
        return self._unexpected(watched, "exit code 0, but the run went on")

    def _unexpected(self, watched: Watched, ending: str) -> Outcome | None:
        """Handles a failed process: starts it again if the plan allows it, else fails the run."""
        child, process = watched.child, watched.process
        assert child is not None
        lines = child.last_lines()
        always = process.on_exit == "restart_always"
        ran_s = time.monotonic() - watched.started_at
        watched.restarts = max(0, watched.restarts - int(ran_s / _GIVEN_BACK_S))
        if always or (process.on_exit == "restart" and watched.restarts < process.max_restarts):
            if always and ran_s > _LONG_LIFE_S:
                watched.restarts = 0
            self._restart(watched, child, ending, lines)
            return None
        spent = f" after {watched.restarts} restarts" if watched.restarts else ""
        return self._failing.fail_process(watched, ending + spent, lines)

    def _restart(self, watched: Watched, child: Child, ending: str, lines: list[str]) -> None:
        """Schedules a new start after a pause. Kills the processes that the last life has left behind."""
        process = watched.process
        supervise.kill_remains(child, {key: watched.env[key] for key in ("VERST_ROLE", "VERST_INDEX")})
        backoff = _BACKOFF_S[min(watched.restarts, len(_BACKOFF_S) - 1)]
        watched.restarts += 1
        watched.start_at = time.monotonic() + backoff
        limit = f" of {process.max_restarts}" if process.on_exit == "restart" else ""
        self._here.say(
            f"{process.name}: {ending}; restart {watched.restarts}{limit} in {backoff:g} s (log: {child.log})"
        )
        self._here.event(
            "process_restarted", process=process.name, ending=ending, restart=watched.restarts, lines=lines
        )
