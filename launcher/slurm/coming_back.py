"""Makes sure that an interrupted job starts again: Slurm requeues it, or its node submits it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from verst.launcher.slurm.jobs import Launch, Script, submissions, submit_script
from verst.runtime.run.ending import close, read_end
from verst.runtime.run.folder import RunFolder
from verst.slurm import SlurmError, cancel, requeue
from verst.slurm.environment import TaskEnvironment
from verst.slurm.job_states import TerminatedBy, terminated_by
from verst.slurm.programs import Patience

# How long to go on asking slurmctld to start this job again. The job's nodes are of no other use, and its time
# limit mostly ends the wait earlier.
_PATIENT_S = 24 * 3600.0


class Report(Protocol):
    """Adds an event to the run's events and to the task's log."""

    def __call__(self, kind: str, /, message: str) -> None: ...


@dataclass(frozen=True)
class Return:
    """The return of one task of a job, after an interruption."""

    folder: RunFolder
    launch: Launch
    task: TaskEnvironment
    group: str
    event: Report
    say: Callable[[str], None]  # to the task's log alone

    @property
    def name(self) -> str:
        """The job in messages."""
        return f"{self.group} job {self.task.name}"

    def come_back(self, why: str) -> int:
        """Makes sure that this task starts again. Returns the task's exit code."""
        if self.launch.restart == "chain":
            self.event("comes_back", message=f"{self.name}: {why}; the next job of the chain continues")
            return 0
        if self.terminated_by() == "requeue":
            self.event("comes_back", message=f"{self.name}: {why}; Slurm requeued it")
            return 0
        ways = [self._requeue, self._resubmit]
        faults = []
        for way in ways if self.launch.restart == "requeue" else reversed(ways):
            try:
                way(why)
                return 0
            except SlurmError as error:
                faults.append(str(error))
                self.event("slurm_failed", message=f"{self.name} cannot come back in this way: {error}")
        self._stay_away(f"{why}; {self.name} cannot come back: {'; '.join(faults)}")
        return 1

    def terminated_by(self) -> TerminatedBy:
        """Why Slurm ends this job; "unknown" if Slurm does not say."""
        try:
            return terminated_by(self.task.name, self.task.restart)
        except SlurmError as error:
            self.say(f"cannot find out why the job was terminated: {error}")
            return "unknown"

    def take_back_jobs(self) -> None:
        """Cancels the run's waiting jobs after its end; they would start only to end at once."""
        try:
            waiting = [s.job for s in submissions(self.folder)]
            cancel(waiting, "--state=PENDING")
        except SlurmError as error:
            self.say(f"cannot cancel waiting jobs, which will end by themselves when they start: {error}")

    def _requeue(self, why: str) -> None:
        self.event("comes_back", message=f"{self.name}: {why}; it goes back into the queue")
        requeue(self.task.name, self._patience())  # this process gets SIGTERM then

    def _resubmit(self, why: str) -> None:
        script: Script = "het" if self.launch.layout == "het" else self.group  # type: ignore[assignment]
        task = [f"--array={self.task.index}"] if self.task.array else []
        job = submit_script(self.folder, script, why, *task, patience=self._patience())
        self.event("comes_back", message=f"{self.name}: {why}; submitted again as job {job}")

    def _patience(self) -> Patience:
        """For the calls on which the next life depends. The events say once that the job waits for Slurm."""
        told: list[str] = []

        def say(text: str) -> None:
            if told:
                self.say(text)
            else:
                self.event("slurm_away", message=f"{text}; {self.name} keeps its nodes and goes on asking")
            told.append(text)

        return Patience(_PATIENT_S, say)

    def _stay_away(self, why: str) -> None:
        """Ends the run for good if this job was the trainer's, so that its engines give their nodes back."""
        if self.group == "rollout":
            return
        end = read_end(self.folder, self.folder.generation)
        if end is not None and end.resumes:
            close(self.folder, end, f"{why}; `verst resume` submits the run again")
            self.take_back_jobs()
