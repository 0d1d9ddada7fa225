"""A run's jobs as its folder knows them: how they were to be launched, and each one that was submitted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

import msgspec
from rich.console import Console

from verst.launcher.recipe.faults import UserError
from verst.runtime.run.folder import RunFolder, append_line, write_atomically
from verst.runtime.run.line_reader import LineReader
from verst.slurm import JobState, SlurmError, job_states, submit
from verst.slurm.site import Restart

# `slurm/<script>.sh` in the run folder: of a run's groups, of both in one job, or of an app of actors
Script = Literal["trainer", "rollout", "het", "actors"]


BY_HAND = ("verst submit", "verst resume")  # why a person submits; a node gives its own reason


class GroupJobs(msgspec.Struct, frozen=True, kw_only=True):
    """One group's array, or its component of the heterogeneous job."""

    tasks: int
    nodes: int  # of each task


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What the nodes must know to bring the run back: `slurm/launch.json`."""

    restart: Restart
    stop_lead_s: int
    kill_wait_s: int
    max_failures: int
    max_fruitless_lives: int | None = None  # None: of an app of actors, which has no checkpoints
    groups: dict[str, GroupJobs]  # of a heterogeneous job in the order of its components
    layout: Literal["arrays", "het"] = "arrays"

    @property
    def leading(self) -> str:
        """The group whose first node leads: a run's trainer, or an app's only group."""
        return next(iter(self.groups))

    def size(self, script: Script) -> str:
        """Of one of the run's jobs, for a person."""
        if script != "het":
            of = self.groups[script]
            return f"{_count(of.tasks, 'task')} of {_count(of.nodes, 'node')}"
        return ", ".join(f"{group}: {_count(of.nodes, 'node')}" for group, of in self.groups.items())

    def write(self, folder: RunFolder) -> None:
        """Into the run folder."""
        write_atomically(
            folder.slurm / "launch.json", msgspec.json.format(msgspec.json.encode(self), indent=2)
        )

    @staticmethod
    def read(folder: RunFolder) -> Launch:
        """Raises FileNotFoundError when the run was not submitted to Slurm."""
        return msgspec.json.decode((folder.slurm / "launch.json").read_bytes(), type=Launch)


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One script that was submitted: a group's array, or the heterogeneous job of both."""

    group: Script
    job: str  # "1234"
    why: str
    time: float


def is_on_slurm(folder: RunFolder) -> bool:
    """Whether a run was submitted."""
    return (folder.slurm / "launch.json").is_file()


def submit_script(folder: RunFolder, script: Script, why: str, *options: str) -> str:
    """Submits one of the run's scripts and notes it. Returns the job's id, an array's; raises SlurmError."""
    job = submit(folder.slurm / f"{script}.sh", *options)
    note = Submission(group=script, job=job, why=why, time=time.time())
    append_line(folder.slurm / "jobs.jsonl", msgspec.to_builtins(note))
    return job


def submissions(folder: RunFolder) -> list[Submission]:
    """All that was submitted for the run, in order."""
    records = LineReader(folder.slurm / "jobs.jsonl").records()
    return [msgspec.convert(record, Submission) for record in records]


def group_states(folder: RunFolder) -> dict[str, list[JobState]]:
    """The present state of every task that was submitted, by group. Raises SlurmError."""
    submitted = submissions(folder)
    states = job_states(s.job for s in submitted)
    found: dict[str, list[JobState]] = {}
    for submission in submitted:
        for state in states[submission.job]:
            found.setdefault(_group(submission, state), []).append(state)
    return found


def print_jobs(folder: RunFolder, console: Console) -> bool:
    """One line a job. Returns whether the run lives; raises UserError when Slurm cannot be asked."""
    lives = False
    for group, states in states_or_fault(folder).items():
        ended = [s for s in states if s.ended]
        for state in states:
            lives = lives or not state.ended
            # Of those that are over only the last says something: each interruption leaves one.
            if not state.ended or (state is ended[-1] and len(ended) == len(states)):
                console.print(f"{group} job {state.job}: {state.words()}", highlight=False, soft_wrap=True)
    return lives


def states_or_fault(folder: RunFolder) -> dict[str, list[JobState]]:
    """`group_states`; raises UserError when Slurm cannot be asked."""
    try:
        return group_states(folder)
    except SlurmError as error:
        raise UserError(str(error)) from error


def _group(submission: Submission, state: JobState) -> str:
    if submission.group != "het":
        return submission.group
    return "rollout" if state.job.endswith("+1") else "trainer"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def missing_tasks(states: Iterable[JobState], tasks: int) -> list[int]:
    """The indices of an array for which no job waits or runs."""
    there = {
        int(s.job.partition("_")[2] or 0) for s in states if not s.ended and s.job.partition("_")[2].isdigit()
    }
    return sorted(set(range(tasks)) - there)
