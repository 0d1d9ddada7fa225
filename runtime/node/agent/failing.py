"""Ends the run after a failure on this node: finds the cause, decides on another try, and reports."""

from __future__ import annotations

import time

from verst.runtime.node.agent.outcome import Outcome
from verst.runtime.node.agent.stopping import Stopping
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import Watched
from verst.runtime.run.ending import HOPELESS, STOPPED, RunEnd, write_end
from verst.runtime.run.last_words import reason_of_the_run, why_it_failed

_MOST_LINES = 400  # a reason may quote a traceback from another process


class Failing:
    """Turns a failure on this node into the end of the run."""

    def __init__(self, here: ThisNode, stopping: Stopping, settle_s: float, max_failures: int) -> None:
        """`settle_s`: how long to wait after a failure for its cause to show, e.g. the run's end elsewhere.

        `max_failures`: how many lives of the run may fail in a row before it is not tried again.
        """
        self._here = here
        self._stopping = stopping
        self._settle_s = settle_s
        self._max_failures = max_failures

    def fail_process(self, watched: Watched, ending: str, lines: list[str]) -> Outcome:
        """Fails the run because of this process. `lines` are the last lines of its log."""
        assert watched.child is not None
        why = self._why(watched, ending, lines)
        return self.fail(why, _shell_code(watched.child.code), lines, watched)

    def fail(self, why: str, code: int, lines: list[str], watched: Watched | None = None) -> Outcome:
        """Fails the run, unless it has ended before. If the agent follows later lives, only this node fails.

        Args:
            why: the reason, for people.
            code: the exit code.
            lines: the last lines of the process's log.
            watched: the process that failed, if one did.
        """
        at = time.time()
        if self._here.follows:  # one engine fewer; the controller decides whether that is too few
            self._tell(watched, why, lines, at, first=False)
            self._here.say(why)
            return Outcome("failed", code)
        time.sleep(self._settle_s)  # if the run has ended elsewhere, that end is the reason
        others = [w for w in self._here.reap() if w.child is not None and w.child.code not in (0, STOPPED)]
        if watched is not None and watched.echoes_another:
            cause = next((w for w in others if not w.echoes_another), None)
            if cause is not None and cause.child is not None:  # it ended earlier but was noticed later
                others[others.index(cause)], watched = watched, cause
                child = watched.child
                assert child is not None
                lines = child.last_lines()
                why, code = self._why(watched, child.ending(), lines), _shell_code(child.code)
        if (fault := self._here.folder.write_fault()) is not None:
            why += f"; its run folder cannot be written ({fault})"
        resumes = self._tries_again(code)
        end = write_end(self._here.folder, RunEnd(code, why, self._here.generation, resumes=resumes))
        self._tell(watched, why, lines, at, first=end.reason == why)
        for other in others:
            assert other.child is not None
            other_lines = other.child.last_lines()
            other_why = self._why(other, other.child.ending(), other_lines)
            self._tell(other, other_why, other_lines, time.time(), first=False)
        self._log(watched, why if end.reason == why else f"{why} (after: {end.reason})", lines)
        return Outcome("run_ended", end.code, end)

    def _why(self, watched: Watched, ending: str, lines: list[str]) -> str:
        """The headline of the failure: the reason that the process gave, and which process it was.

        A fault of the recipe, and any reason that the controller gave, stands alone: which process it ended says
        nothing more.
        """
        assert watched.child is not None
        reason = why_it_failed(lines)
        if watched.process.on_exit == "ends_run":
            told = reason_of_the_run(watched.child.last_lines(_MOST_LINES))
            if told is not None:
                return told
        elif watched.child.code == HOPELESS and reason is not None:
            return reason
        place = f"{watched.process.name} on node {self._here.name} failed: {ending}"
        return place if reason is None or reason in ending else f"{place}: {reason}"

    def _tell(self, watched: Watched | None, why: str, lines: list[str], at: float, *, first: bool) -> None:
        """Writes an event about a failure. `at`: its time by the wall clock. `first`: it ended the run."""
        known = {} if watched is None else {"process": watched.process.name, "echo": watched.echoes_another}
        self._here.event("process_failed", reason=why, first=first, at=at, lines=lines, **known)

    def _log(self, watched: Watched | None, why: str, lines: list[str]) -> None:
        self._here.say(why)
        if watched is not None:
            self._here.say(f"its log is {watched.log}; the last lines:")
            for line in lines:
                self._here.print(f"  | {line}")

    def _tries_again(self, code: int) -> bool:
        life = self._here.folder.life
        return (
            code != HOPELESS
            and not self._stopping.for_good
            and life is not None
            and life.failures < self._max_failures
        )


def _shell_code(code: int | None) -> int:
    """The exit code that a shell would give: 128 + the signal's number for a killed process. Never 0."""
    code = code or 1
    return code if code > 0 else 128 - code
