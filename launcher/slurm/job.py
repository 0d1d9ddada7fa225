"""The program in each task of a run's jobs: it runs the node agent, and restarts the run when Slurm interrupts it.

`python -m verst.launcher.slurm.job --run DIR --group trainer`, started by srun once on each node.

The first node of the trainer (for an app of actors, the first node of its job) leads. Each start of its job
is a new life of the run. The leader submits again the jobs of engines that are gone, and after
an interruption it makes sure that its own job starts again (`coming_back.py`).
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Slurm may send a signal during the imports below. Blocked signals wait until the agent reads them.
if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.model_record import fault_of_next_life
from verst.launcher.slurm.coming_back import Return
from verst.launcher.slurm.jobs import (
    BY_HAND,
    Launch,
    group_states,
    knows_job,
    missing_tasks,
    submissions,
    submit_script,
)
from verst.runtime.node.agent import Agent
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.ending import STOPPED, RunEnd, close, last_end, read_end, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.user import user_name
from verst.slurm import JobState, SlurmError, cancel
from verst.slurm.environment import TaskEnvironment
from verst.slurm.executor import STOP_SIGNAL
from verst.slurm.submission import own_token

_POLL_S = 2.0  # between two reads of the run folder; a thousand agents share one file system
_LEADER_S = 300.0  # longest wait for the leader to begin a life
# Time for the agents of an earlier life, which may be cut off from Slurm, to see that a new one has begun.
_FENCE_S = _POLL_S + 0.5
_LEASE_S = 600.0  # longer than a shared file system's usual outages
_RECORD_S = 60.0  # longest wait for the record of this job's submission; shared file systems show it late
_MARGIN_S = 20.0  # the part of the stop time that is kept for ending processes and calling Slurm


@dataclass
class SlurmJob:
    """One task of one job: one node."""

    folder: RunFolder
    launch: Launch
    task: TaskEnvironment
    group: str

    def run(self) -> int:
        """Runs the agent of this node. Returns the task's exit code."""
        if self._over():
            self._say("the run has ended: nothing to do")
            return 0
        if not knows_job(self.folder, self.task.array or self.task.job, own_token(), _RECORD_S):
            return self._step_back()
        node = self.task.index * self.launch.groups[self.group].nodes + self.task.node
        self.folder.claim(self.group, node, self.task.life)
        whole = self.launch.layout == "het"  # one job: the engines' nodes start and end with the trainer's
        if self.group == "rollout" and not whole:
            return self._after_rollout(self._agent(node, follows=True))
        if self.group == "rollout" or self.task.node > 0:
            self._wait_for_leader()
            # The leader's exit code is the job's. A follower that failed would end the job before the leader.
            return 0 if self._agent(node).run().why == "run_ended" else 1
        if not self._is_fresh() and (why := self._fruitless()):
            self._give_up(why)
            return 1
        if why := self._changed_model():
            self._give_up(f"no further life begins: {why}; then `verst resume` goes on")
            return 1
        self._begin_life()
        if not whole:
            self._see_to_other_jobs()
        return self._after_trainer(self._agent(node))

    def _agent(self, node: int, follows: bool = False) -> Agent:
        saving = max(5.0, self.launch.stop_lead_s - _MARGIN_S)
        return Agent(
            self.folder,
            self.group,
            node,
            self.folder.generation,
            poll_s=_POLL_S,
            soft_signals={
                STOP_SIGNAL: saving,
                signal.SIGTERM: max(2.0, min(saving, self.launch.kill_wait_s - 5.0)),
            },
            max_failures=self.launch.max_failures,
            follows=follows,
            claim=self.task.life,
            lease_s=_LEASE_S,
        )

    def _over(self) -> bool:
        """Whether the run has ended for good."""
        end = read_end(self.folder, self.folder.generation)
        return self.folder.cancelled is not None or (end is not None and not end.resumes)

    def _step_back(self) -> int:
        """Leaves the run to its other jobs."""
        why = "it was not submitted by `verst`, or a second time because sbatch's answer was lost"
        text = (
            f"{self.group} job {self.task.name} is not in {self.folder.slurm / 'jobs.jsonl'} ({why}): it ends"
        )
        if self.task.node == 0:
            self._event("stepped_back", message=text)
        else:
            self._say(text)
        return 0

    # -- the trainer's lives

    def _begin_life(self) -> None:
        before, end = self.folder.life, last_end(self.folder)
        name = self._checkpoint()
        failed = before is not None and end is not None and end.generation == before.generation
        failed = failed and end is not None and end.code not in (0, STOPPED)
        stuck = failed and before is not None and before.checkpoint == name
        failures = before.failures + 1 if stuck and before is not None else 0
        in_vain = before is not None and before.checkpoint == name and not self._is_fresh()
        fruitless = before.fruitless + 1 if in_vain and before is not None else 0
        generation = self.folder.start_generation(self.task.life, failures, name, fruitless)
        if generation > 0:
            time.sleep(_FENCE_S)
        again = f", requeued {self.task.restart} times" if self.task.restart else ""
        self._event(
            "job_started",
            message=f"job {self.task.name}{again} begins life {generation} on {', '.join(self.task.hosts)}",
            job=self.task.name,
            hosts=list(self.task.hosts),
        )

    def _checkpoint(self) -> str:
        checkpoint = latest(self.folder.checkpoints)
        return checkpoint.name if checkpoint else "-"

    def _fruitless(self) -> str | None:
        """Why the run should give up: too many lives in a row ended without a new checkpoint. None if it should not."""
        life, limit = self.folder.life, self.launch.max_fruitless_lives
        if life is None or limit is None or life.checkpoint != self._checkpoint():
            return None
        lives = life.fruitless + 1
        if lives < limit:
            return None
        end = read_end(self.folder, life.generation)
        since = "the first checkpoint" if life.checkpoint == "-" else f"a checkpoint after {life.checkpoint}"
        return (
            f"{lives} lives in a row (slurm.max_fruitless_lives) have ended before {since}; the last one: "
            f"{end.reason if end else 'it ended without giving a reason'}; `verst resume` tries again"
        )

    def _changed_model(self) -> str | None:
        """Why the model in `model.path` is not the one that the run began with. None if it is."""
        try:
            return fault_of_next_life(self.folder)
        except (OSError, ValueError, UserError) as error:  # perhaps a file system that is away for a moment
            self._event("model_not_compared", message=f"cannot see whether the model has changed: {error}")
            return None

    def _give_up(self, why: str) -> None:
        """Ends the run for good: no further life will start."""
        life = self.folder.life
        assert life is not None
        end = write_end(self.folder, RunEnd(1, why, life.generation))
        close(self.folder, end, why)
        self._event("gave_up", message=why)
        self._return().take_back_jobs()

    def _wait_for_leader(self) -> None:
        deadline = time.monotonic() + _LEADER_S
        while (life := self.folder.life) is None or life.started_by != self.task.life:
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"node 0 of job {self.task.name} ({self.task.hosts[:1]}) did not begin a life of the run "
                    f"within {_LEADER_S:.0f} s; the last life in {self.folder.root} is {life}"
                )
            time.sleep(0.5)

    def _see_to_other_jobs(self) -> None:
        """Cancels other trainer jobs, which would fence this one off, and submits engines that are gone again."""
        if self.launch.restart == "chain" or self._is_fresh():
            return
        try:
            states = group_states(self.folder)
            self._be_the_only_leader(states.get(self.group, []))
            if "rollout" in self.launch.groups:
                self._bring_back_engines(states.get("rollout", []))
        except (
            SlurmError
        ) as error:  # some nodes cannot call Slurm; the run goes on with the engines that it has
            self._event("slurm_failed", message=f"cannot check the run's other jobs: {error}")

    def _is_fresh(self) -> bool:
        """Whether the user has just submitted this job. Then the engines' jobs may not have been submitted yet."""
        job = self.task.array or self.task.job
        why = next((s.why for s in submissions(self.folder) if s.job == job), BY_HAND[0])
        return self.task.restart == 0 and why in BY_HAND

    def _be_the_only_leader(self, states: list[JobState]) -> None:
        surplus = [s.job for s in states if not s.ended and s.job != self.task.name]
        cancel(surplus)
        if surplus:
            self._event(
                "surplus_cancelled",
                message=f"job {self.task.name} runs the {self.group}: cancelled its other jobs {surplus}",
            )

    def _bring_back_engines(self, states: list[JobState]) -> None:
        missing = missing_tasks(states, self.launch.groups["rollout"].tasks)
        if missing:
            array = f"--array={','.join(map(str, missing))}"
            job = submit_script(self.folder, "rollout", "its earlier job is gone", array)
            self._event("engines_submitted", message=f"submitted engines {missing} again as job {job}")

    def _after_trainer(self, agent: Agent) -> int:
        outcome = agent.run()
        end = outcome.end
        if end is not None and end.resumes and (absent := self._without_agent()):
            self._event(
                "agent_not_started",
                message=f"no agent ever started on {', '.join(absent)} in this life, which may be why it ended: see "
                f"{self.folder.logs / 'slurm'}; slurm.sbatch.exclude leaves a node out",
            )
        if end is not None and end.resumes and self._was_cancelled(agent):
            close(self.folder, end, f"job {self.task.name} was cancelled (scancel); {end.reason}")
        elif end is not None and end.resumes and (why := self._fruitless()):
            self._give_up(why)
            return 1
        elif end is not None and end.resumes:
            return self._return().come_back(end.reason)
        if outcome.why == "run_ended":
            self._return().take_back_jobs()
        return 0 if end is not None and end.code == STOPPED else outcome.code

    def _without_agent(self) -> list[str]:
        """The nodes of this task whose agents have not started in this life: a missing image, mount or Python."""
        first = self.task.index * self.launch.groups[self.group].nodes

        def started(node: int) -> bool:
            try:
                return self.folder.claimed_by(self.group, first + node) == self.task.life
            except FileNotFoundError:
                return False

        return [host for node, host in enumerate(self.task.hosts) if not started(node)]

    # -- engines

    def _after_rollout(self, agent: Agent) -> int:
        outcome = agent.run()
        if outcome.why == "failed":
            return outcome.code
        interrupted = outcome.why == "stopped" and outcome.code > 128
        if interrupted and self.task.node == 0 and not self._was_cancelled(agent):
            return self._return().come_back("its node was taken away")
        return 0

    def _was_cancelled(self, agent: Agent) -> bool:
        """Whether somebody cancelled this job. It asks Slurm, since a preemption sends SIGTERM too."""
        if STOP_SIGNAL in agent.signals or signal.SIGTERM not in agent.signals:
            return False
        return self._return().terminated_by() == "cancel"

    def _return(self) -> Return:
        return Return(self.folder, self.launch, self.task, self.group, self._event, self._say)

    def _event(self, kind: str, message: str, **fields: object) -> None:
        self._say(message)
        try:
            self.folder.event(kind, message=message, **fields)
        except OSError as error:
            self._say(f"cannot write {self.folder.events}: {error}")

    def _say(self, text: str) -> None:
        print(f"verst {self.group} {self.task.name}/{self.task.node}: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Parses the command line and runs the task. Returns its exit code."""
    user_name()  # what it starts needs one
    parser = argparse.ArgumentParser(
        prog="verst.launcher.slurm.job", description="Runs one node of a run on Slurm."
    )
    parser.add_argument("--run", required=True, type=Path, help="the run folder")
    parser.add_argument("--group", required=True, choices=["trainer", "rollout", "actors"])
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    return SlurmJob(folder, Launch.read(folder), TaskEnvironment.read(), arguments.group).run()


if __name__ == "__main__":
    sys.exit(main())
