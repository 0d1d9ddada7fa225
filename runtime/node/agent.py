"""The node agent: starts, watches and ends the processes of its node. The only thing the launcher starts.

`python -m verst.runtime.node.agent --run DIR --group trainer --node 0 --generation 0`

It does no CUDA and has one thread, so a signal is never stuck. What a process's end means is in plan.json
(`Process.on_exit`). The agent ends when the run does (`run_end.py`), when it is told to by a signal, or when
a later life of the run, or another agent in its place, has begun; its processes and all they started end
with it. On a cluster (`launcher/slurm/job.py` has what is different there) a signal that comes before a preemption
asks the run to stop and save, and the agents of engines go on into the run's next life.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from verst.runtime.node import forking, supervise
from verst.runtime.node.processes import NodeProcesses, Watched
from verst.runtime.node.supervise import Child
from verst.runtime.run.blame import follows_another
from verst.runtime.run.ending import CANNOT_WRITE, GAVE_UP, HOPELESS, STOPPED, RunEnd, read_end, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import set_aside, stamp, without_stamp
from verst.runtime.run.plan import Plan, Process

GRACE_S = 8.0  # between SIGTERM and SIGKILL
# A process may exit with 0 because the run ends, before the controller has; this long we wait for that.
EARLY_EXIT_S = 60.0
_FENCED = STOPPED  # exit code: a later generation has taken over (EX_TEMPFAIL)
_LOGS_S = 30.0  # between two looks at the logs' sizes
_LONG_LIFE_S = 60.0  # after that the pauses of a process that is always started again are short again
_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


@dataclass(frozen=True)
class Outcome:
    """Why an agent ended. "run_ended": `end` says how; "stopped": by a signal; "failed": this node alone did."""

    why: Literal["run_ended", "fenced", "stopped", "failed"]
    code: int  # for the agent's own exit
    end: RunEnd | None = None


@dataclass
class Agent:
    """Runs one node of the plan.

    The defaults are those of a run on one machine, whose launcher sees to the rest. On a cluster
    `soft_signals` maps signals that ask the run to stop and save to the seconds it has for that,
    `max_failures` bounds the lives that may fail in a row, `follows` lets the agent go on into later lives
    (its processes know how to), `claim` says that no other agent has taken this one's place, and an agent
    that cannot read the run folder for `lease_s` ends itself.
    """

    folder: RunFolder
    group: str
    node: int
    generation: int
    grace_s: float = GRACE_S
    early_exit_s: float = EARLY_EXIT_S
    poll_s: float = 0.5  # of the run folder
    soft_signals: Mapping[signal.Signals, float] = field(default_factory=dict)
    max_failures: int = 0
    follows: bool = False
    claim: str | None = None
    lease_s: float | None = None  # so long the run folder may be out of reach; None: for ever
    _log_limit: tuple[int, int] = (64 << 20, 3)  # bytes of a log, logs set aside
    watched: list[Watched] = field(default_factory=list)
    signals: list[signal.Signals] = field(default_factory=list)  # received, in order
    _stop_by: float | None = None  # monotonic: we were asked to stop; the run must have ended by then
    _stop_for_good: bool = False
    _forkable: dict[str, bool] = field(default_factory=dict)
    _logs: Path | None = None  # this node's log folder
    _logs_at: float = field(default_factory=time.monotonic)  # monotonic: their sizes, for the last time
    _read_at: float = field(default_factory=time.monotonic)  # monotonic: the run folder, for the last time

    def run(self) -> Outcome:
        """Starts the node's processes in order, watches them until an end, and leaves nothing behind."""
        supervise.prepare_supervisor()
        try:
            self._read_plan()
            return self._watch()
        except Exception as error:  # the other agents must not go on for ever without this one
            why = f"the node agent {self.group}/{self.node} failed: {type(error).__name__}: {error}"
            self._say(why)
            if not self.follows:
                write_end(self.folder, RunEnd(1, why, self.generation))
            raise
        finally:
            self._stop_all()

    def _read_plan(self) -> None:
        plan = Plan.read(self.folder.plan)
        self._log_limit = plan.log_bytes, plan.logs_kept
        self._logs = self.folder.log_folder(self.group, self.node, self.generation)
        mine = NodeProcesses(plan, self.folder, self.group, self.node, shielded=bool(self.soft_signals))
        self.watched = mine.watched(self.generation, self._logs)
        for line in mine.remarks:
            self._say(line)

    def _watch(self) -> Outcome:
        next_poll = 0.0
        while True:
            now = time.monotonic()
            if now >= next_poll:
                next_poll = now + self.poll_s
                if (outcome := self._look_at_run_folder()) is not None:
                    return outcome
                self._look_at_logs(now)
                if self._stop_by is not None:
                    self._signal_leader()  # again: it may not have been listening yet
            if self._stop_by is not None and now >= self._stop_by:
                return self._stop_is_late()
            if (outcome := self._start_due(now)) is not None:
                return outcome
            received = supervise.wait_signal(self._next_due(next_poll) - time.monotonic())
            if received not in (None, signal.SIGCHLD) and (outcome := self._signalled(received)) is not None:
                return outcome
            for watched in self._reap():
                if (outcome := self._ended(watched)) is not None:
                    return outcome

    # -- what the run folder says

    def _look_at_run_folder(self) -> Outcome | None:
        try:
            current = self.folder.generation
            holder = self.folder.claimed_by(self.group, self.node) if self.claim else None
            cancelled = self._leads and self.folder.cancelled
            end = read_end(self.folder, self.generation)
        except OSError as error:  # a shared file system has bad minutes; the processes go on
            self._say(f"cannot read {self.folder.root}: {error}")
            return self._lease_is_over()
        self._read_at = time.monotonic()
        if holder != self.claim:
            self._say(f"{holder} runs this node of the run now: {self.claim} stops")
            return Outcome("fenced", _FENCED)
        if current > self.generation:
            if not self.follows:
                self._say(f"generation {current} of the run has begun: generation {self.generation} stops")
                return Outcome("fenced", _FENCED)
            self._enter(current)
            return None
        if cancelled and not self._stop_for_good:
            self._stop_for_good = True
            self._ask_to_stop(f"`verst cancel`: {cancelled}", max(self.soft_signals.values(), default=0.0))
        if end is None or (end.resumes and self.follows):
            return None
        return self._run_ended(end)

    def _lease_is_over(self) -> Outcome | None:
        """An agent that has been cut off for long must take it that the run has gone on without it."""
        away_s = time.monotonic() - self._read_at
        if self.lease_s is None or away_s < self.lease_s:
            return None
        self._say(f"{self.folder.root} has been out of reach for {away_s:.0f} s: this node stops")
        return Outcome("fenced", _FENCED)

    def _enter(self, generation: int) -> None:
        """Goes on into another life of the run; the processes find that out by themselves."""
        self._say(f"generation {generation} of the run has begun: going on with it")
        self.generation = generation
        for watched in self.watched:
            watched.env["VERST_GENERATION"] = str(generation)
            watched.restarts = 0

    def _run_ended(self, end: RunEnd) -> Outcome:
        self._say(f"the run has ended: {end.reason}")
        return Outcome("run_ended", end.code, end)

    def _look_at_logs(self, now: float) -> None:
        if self._logs is None or now - self._logs_at < _LOGS_S:
            return
        self._logs_at = now
        for log in self._logs.glob("*.log"):
            try:
                set_aside(log, *self._log_limit)
            except OSError as error:  # a full disk, a bad minute: the log goes on growing
                self._say(f"cannot set {log.name} aside: {error}")

    # -- being asked to stop

    @property
    def _leads(self) -> bool:
        """Whether the process whose end is the run's is on this node."""
        return any(w.process.on_exit == "ends_run" for w in self.watched)

    def _signalled(self, received: signal.Signals) -> Outcome | None:
        self.signals.append(received)
        allowed_s = self.soft_signals.get(received)
        if allowed_s is None or self.follows:  # the run goes on without this engine
            self._say(f"received {received.name}: stopping")
            return Outcome("stopped", 128 + received)
        self._ask_to_stop(f"received {received.name}", allowed_s)
        return None

    def _ask_to_stop(self, why: str, allowed_s: float) -> None:
        by = time.monotonic() + allowed_s
        if self._stop_by is not None:
            self._stop_by = min(self._stop_by, by)
            return
        self._stop_by = by
        self._say(f"{why}: the run has {allowed_s:.0f} s to stop and save")
        if self._leads:
            self._event("stop_asked", message=f"{why}; {allowed_s:.0f} s to stop at a step boundary and save")
        self._signal_leader()

    def _signal_leader(self) -> None:
        for watched in self.watched:
            if watched.process.on_exit == "ends_run" and watched.child and watched.child.code is None:
                watched.child.popen.send_signal(signal.SIGUSR2)

    def _stop_is_late(self) -> Outcome:
        why = "was asked to stop and could not save in time; the last checkpoint counts"
        return self._run_ended(
            write_end(self.folder, RunEnd(STOPPED, why, self.generation, resumes=not self._stop_for_good))
        )

    # -- starting

    def _start_due(self, now: float) -> Outcome | None:
        for watched in self.watched:
            if watched.start_at is not None and watched.start_at <= now:
                watched.start_at, watched.started_at = None, now
                try:
                    env = {**os.environ, **watched.env}
                    start = forking.start if self._can_fork(watched.process) else supervise.start
                    watched.child = start(
                        watched.process.name, watched.process.argv, env, watched.log, watched.cpus
                    )
                except OSError as error:
                    why = f"{watched.process.name} cannot be started: {watched.process.argv[0]}: {error.strerror}"
                    return self._fail(why, 127, [])
            if watched.quiet_until is not None and watched.quiet_until <= now:
                watched.quiet_until = None
                if (outcome := self._unexpected(watched, "exit code 0, but the run went on")) is not None:
                    return outcome
        return None

    def _can_fork(self, process: Process) -> bool:
        if not process.forks or process.argv[0] != sys.executable:
            return False
        module = process.argv[2]
        if module not in self._forkable:
            self._forkable[module] = forking.prepare(module)
            if not self._forkable[module]:
                self._say(f"{module} started a thread here: its processes start anew, not as forks")
        return self._forkable[module]

    def _next_due(self, next_poll: float) -> float:
        due = [w.start_at for w in self.watched] + [w.quiet_until for w in self.watched] + [self._stop_by]
        return min([next_poll, *(moment for moment in due if moment is not None)])

    def _reap(self) -> list[Watched]:
        by_child = {id(w.child): w for w in self.watched if w.child is not None}
        ended = [by_child[id(child)] for child in supervise.reap([w.child for w in self.watched if w.child])]
        return sorted(ended, key=_follows_another)  # of those that ended together the cause comes first

    # -- what an end means

    def _ended(self, watched: Watched) -> Outcome | None:
        child = watched.child
        assert child is not None
        ends_run = watched.process.on_exit == "ends_run"
        if watched.process.on_exit == "ignored":
            self._say(f"{child.name}: {child.ending()}; the run goes on without it (log: {child.log})")
            return None
        if child.code == 0 and ends_run:
            return self._run_ended(
                write_end(self.folder, RunEnd(0, f"{child.name} finished", self.generation))
            )
        if child.code == STOPPED and ends_run:
            end = RunEnd(
                STOPPED, "stopped when asked to, and saved", self.generation, resumes=not self._stop_for_good
            )
            return self._run_ended(write_end(self.folder, end))
        if child.code == GAVE_UP and self.follows:
            self._say(f"{child.name} has waited long enough: this node is given back")
            return Outcome("stopped", 0)
        if child.code == CANNOT_WRITE:  # its last line says what it could not write, and why
            why = " ".join(map(without_stamp, child.last_lines(1)))[:300]
            return self._unexpected(watched, f"{child.ending()}, {why}")
        if child.code != 0 or watched.process.on_exit == "restart_always":
            return self._unexpected(watched, child.ending())
        watched.quiet_until = time.monotonic() + self.early_exit_s
        return None

    def _unexpected(self, watched: Watched, ending: str) -> Outcome | None:
        """A process failed. Starts it again if it may, else the run fails."""
        child, process = watched.child, watched.process
        assert child is not None
        lines = child.last_lines()
        always = process.on_exit == "restart_always"
        if always or (process.on_exit == "restart" and watched.restarts < process.max_restarts):
            if always and time.monotonic() - watched.started_at > _LONG_LIFE_S:
                watched.restarts = 0
            self._restart(watched, child, ending, lines)
            return None
        spent = f" after {watched.restarts} restarts" if watched.restarts else ""
        return self._fail(
            self._why(watched, ending + spent), _shell_code(child.code), lines, watched, time.time()
        )

    def _restart(self, watched: Watched, child: Child, ending: str, lines: list[str]) -> None:
        """After a pause, when what is left of the process's last life is gone."""
        process = watched.process
        supervise.kill_remains(child, {key: watched.env[key] for key in ("VERST_ROLE", "VERST_INDEX")})
        backoff = _BACKOFF_S[min(watched.restarts, len(_BACKOFF_S) - 1)]
        watched.restarts += 1
        watched.start_at = time.monotonic() + backoff
        limit = f" of {process.max_restarts}" if process.on_exit == "restart" else ""
        self._say(
            f"{process.name}: {ending}; restart {watched.restarts}{limit} in {backoff:g} s (log: {child.log})"
        )
        self._event(
            "process_restarted", process=process.name, ending=ending, restart=watched.restarts, lines=lines
        )

    def _why(self, watched: Watched, ending: str) -> str:
        return f"{watched.process.name} on node {self.group}/{self.node} failed: {ending}"

    def _fail(
        self, why: str, code: int, lines: list[str], watched: Watched | None = None, at: float = 0.0
    ) -> Outcome:
        """The run fails, unless it had ended before. `at` is the wall clock's time of the failure."""
        at = at or time.time()
        if self.follows:  # one engine fewer; whether that is too few is the controller's to say
            self._tell_failure(watched, why, lines, at, first=False)
            self._say(why)
            return Outcome("failed", code)
        time.sleep(
            self.poll_s
        )  # perhaps it failed because the run had ended elsewhere: then that is the reason
        others = [w for w in self._reap() if w.child is not None and w.child.code not in (0, STOPPED)]
        if watched is not None and _follows_another(watched):
            cause = next((w for w in others if not _follows_another(w)), None)
            if cause is not None and cause.child is not None:  # it was noticed later, and was earlier
                others[others.index(cause)], watched = watched, cause
                child = watched.child
                assert child is not None
                why, code = self._why(watched, child.ending()), _shell_code(child.code)
                lines = child.last_lines()
        if (fault := self.folder.write_fault()) is not None:
            why += f"; its run folder cannot be written ({fault})"
        end = write_end(self.folder, RunEnd(code, why, self.generation, resumes=self._tries_again(code)))
        self._tell_failure(watched, why, lines, at, first=end.reason == why)
        for other in others:
            assert other.child is not None
            other_why = self._why(other, other.child.ending())
            self._tell_failure(other, other_why, other.child.last_lines(), time.time(), first=False)
        self._say(why if end.reason == why else f"{why} (after: {end.reason})")
        if watched is not None:
            self._say(f"its log is {watched.log}; the last lines:")
            for line in lines:
                self._print(f"  | {line}")
        return Outcome("run_ended", end.code, end)

    def _tell_failure(
        self, watched: Watched | None, why: str, lines: list[str], at: float, *, first: bool
    ) -> None:
        known = (
            {} if watched is None else {"process": watched.process.name, "echo": _follows_another(watched)}
        )
        self._event("process_failed", reason=why, first=first, at=at, lines=lines, **known)

    def _tries_again(self, code: int) -> bool:
        life = self.folder.life
        return (
            code != HOPELESS
            and not self._stop_for_good
            and life is not None
            and life.failures < self.max_failures
        )

    def _stop_all(self) -> None:
        left = supervise.stop([w.child for w in self.watched if w.child is not None], self.grace_s)
        if left:
            self._say(f"these do not end although killed (in uninterruptible I/O): {', '.join(left)}")

    def _event(self, kind: str, **fields: object) -> None:
        try:
            self.folder.event(kind, group=self.group, node=self.node, **fields)
        except OSError as error:
            self._say(f"cannot write {self.folder.events}: {error}")

    def _say(self, text: str) -> None:
        self._print(f"verst agent {self.group}/{self.node}: {text}")

    def _print(self, line: str) -> None:
        """stderr is often a file on the run folder's disk: that it cannot be written must not end the run."""
        with contextlib.suppress(OSError):
            print(stamp() + line, file=sys.stderr, flush=True)


def _follows_another(watched: Watched) -> bool:
    """Whether its end looks like the echo of another process's."""
    child = watched.child
    if child is None or child.code in (0, STOPPED, GAVE_UP):
        return False
    return follows_another(child.code, child.last_lines())


def _shell_code(code: int | None) -> int:
    code = code or 1
    return code if code > 0 else 128 - code


def main(argv: list[str] | None = None) -> int:
    """The command line. Exit code: 0 after a good end, 128 + signal when stopped, else the failure's."""
    parser = argparse.ArgumentParser(
        prog="verst.runtime.node.agent", description="Runs one node of a run's plan."
    )
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--group", required=True, help='"trainer", "rollout", … as in plan.json')
    parser.add_argument("--node", required=True, type=int, help="which node of the group")
    parser.add_argument("--generation", required=True, type=int, help="the life of the run this belongs to")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds between SIGTERM and SIGKILL")
    args = parser.parse_args(argv)
    return Agent(RunFolder(args.run), args.group, args.node, args.generation, args.grace).run().code


if __name__ == "__main__":
    sys.exit(main())
