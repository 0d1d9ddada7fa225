"""The node agent: starts, watches and ends the processes of its node. The only thing the launcher starts.

`python -m verst.runtime.agent --run DIR --group trainer --node 0 --generation 0`

It does no CUDA and has one thread, so a signal is never stuck. What a process's end means is in plan.json
(`Process.on_exit`). The agent ends when the run does (`run_end.py`), when it is told to (SIGTERM, SIGINT,
SIGHUP), or when a later generation of the run has begun; its processes and all they started end with it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from verst.runtime import supervise
from verst.runtime.plan import Plan, Process
from verst.runtime.run_end import RunEnd, read_end, write_end
from verst.runtime.run_folder import RunFolder
from verst.runtime.supervise import Child

GRACE_S = 8.0  # between SIGTERM and SIGKILL
# A process may exit with 0 because the run ends, before the controller has; this long we wait for that.
EARLY_EXIT_S = 60.0
_POLL_S = 0.5  # of the run folder
_FENCED = 75  # exit code: a later generation has taken over (EX_TEMPFAIL)
_BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


@dataclass
class Watched:
    """One process of the plan and its present life."""

    process: Process
    env: dict[str, str]  # what the agent adds to its own environment
    log: Path
    child: Child | None = None
    restarts: int = 0
    start_at: float | None = None  # monotonic: when to start it again
    quiet_until: float | None = None  # monotonic: it exited with 0; the run should end by then


@dataclass
class Agent:
    """Runs one node of the plan. `run` returns the agent's exit code."""

    folder: RunFolder
    group: str
    node: int
    generation: int
    grace_s: float = GRACE_S
    early_exit_s: float = EARLY_EXIT_S
    watched: list[Watched] = field(default_factory=list)

    def run(self) -> int:
        """Starts the node's processes in order, watches them until an end, and leaves nothing behind."""
        supervise.prepare_supervisor()
        try:
            self._read_plan()
            return self._watch()
        except Exception as error:  # the other agents must not go on for ever without this one
            why = f"the node agent {self.group}/{self.node} failed: {type(error).__name__}: {error}"
            write_end(self.folder, RunEnd(1, why, self.generation))
            raise
        finally:
            self._stop_all()

    def _read_plan(self) -> None:
        plan = Plan.read(self.folder.plan)
        nodes = plan.groups.get(self.group)
        if nodes is None:
            raise SystemExit(
                f"{self.folder.plan} has no group {self.group!r}; it has: {', '.join(plan.groups)}"
            )
        if not 0 <= self.node < len(nodes):
            raise SystemExit(
                f"{self.folder.plan}: group {self.group} has nodes 0 to {len(nodes) - 1}, not {self.node}"
            )
        logs = self.folder.log_folder(self.group, self.node, self.generation)
        for process in nodes[self.node].processes:
            identity = {
                "VERST_RUN": str(self.folder.root),
                "VERST_GENERATION": str(self.generation),
                "VERST_ROLE": process.role,
                "VERST_INDEX": str(process.index),
                "VERST_HOST": plan.host,
            }
            env = {"PYTHONUNBUFFERED": "1", **process.env, **identity}
            self.watched.append(Watched(process, env, logs / f"{process.name}.log", start_at=0.0))

    def _watch(self) -> int:
        next_poll = 0.0
        while True:
            now = time.monotonic()
            if now >= next_poll:
                next_poll = now + _POLL_S
                if (code := self._look_at_run_folder()) is not None:
                    return code
            if (code := self._start_due(now)) is not None:
                return code
            received = supervise.wait_signal(self._next_due(next_poll) - time.monotonic())
            if received in supervise.STOP_SIGNALS:
                self._say(f"received {received.name}: stopping")
                return 128 + received
            for watched in self._reap():
                if (code := self._ended(watched)) is not None:
                    return code

    def _look_at_run_folder(self) -> int | None:
        try:
            end = read_end(self.folder, self.generation)
            current = self.folder.generation
        except OSError as error:  # a shared file system has bad minutes; the processes go on
            self._say(f"cannot read {self.folder.root}: {error}")
            return None
        if current > self.generation:
            self._say(f"generation {current} of the run has begun: generation {self.generation} stops")
            return _FENCED
        return None if end is None else self._run_ended(end)

    def _run_ended(self, end: RunEnd) -> int:
        self._say(f"the run has ended: {end.reason}")
        return end.code

    def _start_due(self, now: float) -> int | None:
        for watched in self.watched:
            if watched.start_at is not None and watched.start_at <= now:
                watched.start_at = None
                try:
                    env = {**os.environ, **watched.env}
                    watched.child = supervise.start(
                        watched.process.name, watched.process.argv, env, watched.log
                    )
                except OSError as error:
                    why = f"{watched.process.name} cannot be started: {watched.process.argv[0]}: {error.strerror}"
                    return self._fail(why, 127, [])
            if watched.quiet_until is not None and watched.quiet_until <= now:
                watched.quiet_until = None
                if (code := self._unexpected(watched, "exit code 0, but the run went on")) is not None:
                    return code
        return None

    def _next_due(self, next_poll: float) -> float:
        due = [w.start_at for w in self.watched] + [w.quiet_until for w in self.watched]
        return min([next_poll, *(moment for moment in due if moment is not None)])

    def _reap(self) -> list[Watched]:
        by_child = {id(w.child): w for w in self.watched if w.child is not None}
        return [by_child[id(child)] for child in supervise.reap([w.child for w in self.watched if w.child])]

    # -- what an end means

    def _ended(self, watched: Watched) -> int | None:
        child = watched.child
        assert child is not None
        if child.code != 0:
            return self._unexpected(watched, child.ending())
        if watched.process.on_exit == "ends_run":
            end = write_end(self.folder, RunEnd(0, f"{child.name} finished", self.generation))
            return self._run_ended(end)
        watched.quiet_until = time.monotonic() + self.early_exit_s
        return None

    def _unexpected(self, watched: Watched, ending: str) -> int | None:
        """A process failed. Starts it again if it may, else the run fails."""
        child, process = watched.child, watched.process
        assert child is not None
        lines = child.last_lines()
        if process.on_exit == "restart" and watched.restarts < process.max_restarts:
            supervise.kill_remains(child, {key: watched.env[key] for key in ("VERST_ROLE", "VERST_INDEX")})
            backoff = _BACKOFF_S[min(watched.restarts, len(_BACKOFF_S) - 1)]
            watched.restarts += 1
            watched.start_at = time.monotonic() + backoff
            budget = f"{watched.restarts} of {process.max_restarts}"
            self._say(f"{process.name}: {ending}; restart {budget} in {backoff:g} s (log: {child.log})")
            self._event(
                "process_restarted",
                process=process.name,
                ending=ending,
                restart=watched.restarts,
                lines=lines,
            )
            return None
        spent = f" after {watched.restarts} restarts" if watched.restarts else ""
        why = f"{process.name} on node {self.group}/{self.node} failed: {ending}{spent}"
        code = child.code or 1
        return self._fail(why, code if code > 0 else 128 - code, lines, child.log)

    def _fail(self, why: str, code: int, lines: list[str], log: Path | None = None) -> int:
        time.sleep(_POLL_S)  # perhaps it failed because the run had ended elsewhere: then that is the reason
        end = write_end(self.folder, RunEnd(code, why, self.generation))
        self._event("process_failed", reason=why, first=end.reason == why, lines=lines)
        self._say(why if end.reason == why else f"{why} (after: {end.reason})")
        if log is not None:
            self._say(f"its log is {log}; the last lines:")
            for line in lines:
                print(f"  | {line}", file=sys.stderr)
            sys.stderr.flush()
        return end.code

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
        print(f"verst agent {self.group}/{self.node}: {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command line. Exit code: 0 after a good end, 128 + signal when stopped, else the failure's."""
    parser = argparse.ArgumentParser(prog="verst.runtime.agent", description="Runs one node of a run's plan.")
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--group", required=True, help='"trainer", "rollout", … as in plan.json')
    parser.add_argument("--node", required=True, type=int, help="which node of the group")
    parser.add_argument("--generation", required=True, type=int, help="the life of the run this belongs to")
    parser.add_argument("--grace", type=float, default=GRACE_S, help="seconds between SIGTERM and SIGKILL")
    args = parser.parse_args(argv)
    return Agent(RunFolder(args.run), args.group, args.node, args.generation, args.grace).run()


if __name__ == "__main__":
    sys.exit(main())
