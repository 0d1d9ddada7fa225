"""The agent's loop: starts due processes, looks at the run folder, handles signals and ended processes.

It uses no CUDA and only one thread, so a signal is never delayed. The agent ends when the run ends
(`run/ending.py`), when a signal stops it, or when a later life of the run, or another agent in its place, has
begun. Its processes and all their descendants end with it.

`launcher/slurm/job.py` runs it with options for a cluster. There a signal before a preemption asks the run to
stop and save, and the agents of engines go on into the run's next life.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping

from verst.runtime.node import supervise
from verst.runtime.node.agent.failing import Failing
from verst.runtime.node.agent.folder_watch import FolderWatch
from verst.runtime.node.agent.hangs import Hangs
from verst.runtime.node.agent.log_limits import LogLimits
from verst.runtime.node.agent.machine_figures import MachineFigures
from verst.runtime.node.agent.outcome import Outcome
from verst.runtime.node.agent.process_ends import ProcessEnds
from verst.runtime.node.agent.stacks import Stacks
from verst.runtime.node.agent.starting import Starting
from verst.runtime.node.agent.stopping import Stopping
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.processes import NodeProcesses
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan

GRACE_S = 8.0  # between SIGTERM and SIGKILL
# When the run ends, processes may exit with 0 before the controller does. We wait this long for its end.
EARLY_EXIT_S = 60.0


class Agent:
    """Runs one node of the plan."""

    def __init__(
        self,
        folder: RunFolder,
        group: str,
        node: int,
        generation: int,
        grace_s: float = GRACE_S,
        early_exit_s: float = EARLY_EXIT_S,
        poll_s: float = 0.5,
        soft_signals: Mapping[signal.Signals, float] | None = None,
        max_failures: int = 0,
        follows: bool = False,
        claim: str | None = None,
        lease_s: float | None = None,
    ) -> None:
        """The defaults are for a run on one machine, where the launcher does the rest.

        Args:
            folder: the run folder.
            group: the group of nodes in plan.json that this node belongs to.
            node: the number of this node in the group.
            generation: the life of the run that this agent was started for.
            grace_s: the seconds between SIGTERM and SIGKILL.
            early_exit_s: how long before the run's end a process may exit with 0.
            poll_s: the seconds between two looks at the run folder.
            soft_signals: the signals that ask the run to stop and save, each with the seconds that it leaves for that.
            max_failures: how many lives of the run may fail in a row before the run fails.
            follows: whether to go on into later lives of the run; the node's processes must be able to.
            claim: this agent's name in the run folder; it stops when another has claimed the node.
            lease_s: how long the run folder may be out of reach before the agent stops; None: forever.
        """
        self._here = ThisNode(folder, group, node, generation, follows)
        self._grace_s = grace_s
        self._poll_s = poll_s
        self._shielded = bool(soft_signals)
        self._stopping = Stopping(self._here, soft_signals or {})
        self._folder_watch = FolderWatch(self._here, self._stopping, claim, lease_s)
        failing = Failing(self._here, self._stopping, poll_s, max_failures)
        self._starting = Starting(self._here, failing)
        self._ends = ProcessEnds(self._here, self._stopping, failing, early_exit_s)
        self._machine = MachineFigures(self._here)
        self._stacks = Stacks(self._here)
        self._logs: LogLimits
        self._hangs: Hangs

    @property
    def signals(self) -> list[signal.Signals]:
        """The signals received, in order."""
        return self._stopping.signals

    def run(self) -> Outcome:
        """Starts the node's processes in order, watches them until the end, and leaves no process behind."""
        supervise.prepare_supervisor()
        try:
            self._read_plan()
            return self._watch()
        except Exception as error:  # else the other agents would go on for ever without this one
            why = f"the node agent {self._here.name} failed: {type(error).__name__}: {error}"
            self._here.say(why)
            if not self._here.follows:
                write_end(self._here.folder, RunEnd(1, why, self._here.generation))
            raise
        finally:
            self._stop_all()

    def _read_plan(self) -> None:
        here = self._here
        plan = Plan.read(here.folder.plan)
        logs = here.folder.log_folder(here.group, here.node, here.generation)
        self._logs = LogLimits(here, logs, plan.log_bytes, plan.logs_kept)
        processes = NodeProcesses(plan, here.folder, here.group, here.node, shielded=self._shielded)
        here.watched = processes.watched(here.generation, logs)
        self._hangs = Hangs(here)
        for line in processes.remarks:
            here.say(line)

    def _watch(self) -> Outcome:
        next_poll = 0.0
        while True:
            now = time.monotonic()
            if now >= next_poll:
                next_poll = now + self._poll_s
                if (outcome := self._folder_watch.look()) is not None:
                    return outcome
                self._logs.look(now)
                self._hangs.look(now)
                self._machine.look(now)
                self._stacks.look(now)
                self._stopping.repeat()
            if (outcome := self._stopping.is_late(now)) is not None:
                return outcome
            if (outcome := self._do_what_is_due(now)) is not None:
                return outcome
            received = supervise.wait_signal(self._next_due(next_poll) - time.monotonic())
            if received not in (None, signal.SIGCHLD) and (
                (outcome := self._stopping.received(received)) is not None
            ):
                return outcome
            for watched in self._here.reap():
                if (outcome := self._ends.ended(watched)) is not None:
                    return outcome

    def _do_what_is_due(self, now: float) -> Outcome | None:
        for watched in self._here.watched:
            if (outcome := self._starting.start_if_due(watched, now)) is not None:
                return outcome
            if (outcome := self._ends.check_early_exit(watched, now)) is not None:
                return outcome
        return None

    def _next_due(self, next_poll: float) -> float:
        watched = self._here.watched
        due = [w.start_at for w in watched] + [w.quiet_until for w in watched] + [self._stopping.by]
        return min([next_poll, *(moment for moment in due if moment is not None)])

    def _stop_all(self) -> None:
        children = [w.child for w in self._here.watched if w.child is not None]
        left = supervise.stop(children, self._grace_s)
        if left:
            self._here.say(f"still there after SIGKILL (in uninterruptible I/O): {', '.join(left)}")
