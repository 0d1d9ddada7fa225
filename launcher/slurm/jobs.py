"""The records of a run's Slurm jobs in its folder: how to launch them, and every submission.

A submission is promised before sbatch is called (`slurm/submitting/TOKEN`), and becomes a line of
`slurm/jobs.jsonl` once the job's id is known. If sbatch's answer was lost, two jobs may have the same token. The
first to rename the promise is the submission's job, whether the submitter does it in its name or the job itself.
A job that the folder does not know must not work on the run (`knows_job`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console

from verst.launcher.recipe.faults import UserError
from verst.runtime.run.folder import RunFolder, append_line, write_atomically
from verst.runtime.run.line_reader import LineReader
from verst.slurm import JobState, SlurmError, cancel, job_states, submit
from verst.slurm.programs import QUICK, Patience
from verst.slurm.site import Restart
from verst.slurm.submission import new_token

# Names of the sbatch scripts `slurm/<script>.sh` in a run folder: one for each group, "het" for both groups
# in one heterogeneous job, "actors" for an app of actors.
Script = Literal["trainer", "rollout", "het", "actors"]


_LOOK_S = 1.0  # between two looks for a job's record

BY_HAND = (
    "verst submit",
    "verst resume",
)  # `Submission.why` of the user's submissions; nodes give other reasons


class GroupJobs(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a group's array, or of its component of the heterogeneous job."""

    tasks: int
    nodes: int  # nodes of each task


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """`slurm/launch.json`: what the nodes need to know to restart the run."""

    restart: Restart
    stop_lead_s: int
    kill_wait_s: int
    max_failures: int
    max_fruitless_lives: int | None = None  # None: no limit, for an app of actors, which has no checkpoints
    groups: dict[str, GroupJobs]  # in the order of the components, for a heterogeneous job
    layout: Literal["arrays", "het"] = "arrays"

    @property
    def leading(self) -> str:
        """The group whose first node leads: the trainer of a run, or the only group of an app."""
        return next(iter(self.groups))

    def size(self, script: Script) -> str:
        """The size of one of the run's jobs, for people: "4 tasks of 1 node"."""
        if script != "het":
            of = self.groups[script]
            return f"{_count(of.tasks, 'task')} of {_count(of.nodes, 'node')}"
        return ", ".join(f"{group}: {_count(of.nodes, 'node')}" for group, of in self.groups.items())

    def write(self, folder: RunFolder) -> None:
        """Writes it to the run folder."""
        write_atomically(
            folder.slurm / "launch.json", msgspec.json.format(msgspec.json.encode(self), indent=2)
        )

    @staticmethod
    def read(folder: RunFolder) -> Launch:
        """Reads it from the run folder. Raises FileNotFoundError when the run was not submitted to Slurm."""
        return msgspec.json.decode((folder.slurm / "launch.json").read_bytes(), type=Launch)


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One submission of a script, a line of `slurm/jobs.jsonl`."""

    group: Script
    job: str  # "1234"
    why: str  # one of BY_HAND, or the reason of a node
    time: float  # seconds since 1970
    token: str = ""  # `slurm/submission.py`; "" for a job of an older version of Verst


def is_on_slurm(folder: RunFolder) -> bool:
    """Whether the run was submitted to Slurm."""
    return (folder.slurm / "launch.json").is_file()


def submit_script(
    folder: RunFolder, script: Script, why: str, *options: str, patience: Patience = QUICK
) -> str:
    """Submits one of the run's scripts and records it. Returns the id of the job or array. Raises SlurmError."""
    promised = Submission(group=script, job="", why=why, time=time.time(), token=new_token())
    promise = _promise(folder, promised.token)
    promise.parent.mkdir(mode=0o700, exist_ok=True)
    write_atomically(promise, msgspec.json.encode(promised))
    try:
        job = submit(folder.slurm / f"{script}.sh", *options, token=promised.token, patience=patience)
    except BaseException as error:
        try:
            promise.unlink()  # a job that shows up later steps back
        except FileNotFoundError:
            if isinstance(error, SlurmError):
                return _taken_by(folder, promised.token)  # it has shown up, and works
        raise
    holder = _take(folder, job, promised.token)
    if holder != job:
        with contextlib.suppress(SlurmError):  # else it steps back by itself
            cancel([job])
    return holder


def knows_job(folder: RunFolder, job: str, token: str, wait_s: float) -> bool:
    """Whether the run folder knows this job (or array). Waits up to `wait_s` for its submitter to record it.

    A submitter may die between sbatch's answer and the record. Then its promise is still there, and the job is
    recorded here.
    """
    deadline = time.monotonic() + wait_s
    while True:
        known = submissions(folder)
        if any(s.job == job for s in known):
            return True
        if token and any(s.token == token for s in known):
            return False  # a duplicate
        if time.monotonic() > deadline:
            return bool(token) and _take(folder, job, token) == job
        time.sleep(_LOOK_S)


def _promise(folder: RunFolder, token: str) -> Path:
    return folder.slurm / "submitting" / token


def _take(folder: RunFolder, job: str, token: str) -> str:
    """Makes `job` the one of this submission, unless another is. Returns the one that is; "" if it was withdrawn."""
    promise = _promise(folder, token)
    try:
        promised = msgspec.json.decode(promise.read_bytes(), type=Submission)
        os.rename(promise, promise.with_name(f"{token}.{job}"))
    except FileNotFoundError:
        return _taken_by(folder, token)
    append_line(folder.slurm / "jobs.jsonl", msgspec.to_builtins(msgspec.structs.replace(promised, job=job)))
    return job


def _taken_by(folder: RunFolder, token: str) -> str:
    return next((path.suffix[1:] for path in _promise(folder, token).parent.glob(f"{token}.*")), "")


def submissions(folder: RunFolder) -> list[Submission]:
    """All submissions of the run, in order."""
    records = LineReader(folder.slurm / "jobs.jsonl").records()
    return [msgspec.convert(record, Submission) for record in records]


def group_states(folder: RunFolder) -> dict[str, list[JobState]]:
    """The current state of every submitted task, by group. Raises SlurmError."""
    submitted = submissions(folder)
    states = job_states(s.job for s in submitted)
    found: dict[str, list[JobState]] = {}
    for submission in submitted:
        for state in states[submission.job]:
            found.setdefault(_group(submission, state), []).append(state)
    return found


def print_jobs(folder: RunFolder, console: Console) -> bool:
    """Prints one line for each job. Returns whether any job has not ended. Raises UserError when Slurm fails."""
    lives = False
    for group, states in states_or_fault(folder).items():
        ended = [s for s in states if s.ended]
        for state in states:
            lives = lives or not state.ended
            # Every interruption leaves an ended job. Only the last one matters, and only if no job is left.
            if not state.ended or (state is ended[-1] and len(ended) == len(states)):
                console.print(f"{group} job {state.job}: {state.words()}", highlight=False, soft_wrap=True)
    return lives


def states_or_fault(folder: RunFolder) -> dict[str, list[JobState]]:
    """As `group_states`, but raises UserError when Slurm fails."""
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
    """The indices of an array of `tasks` tasks for which no job waits or runs."""
    there = {
        int(s.job.partition("_")[2] or 0) for s in states if not s.ended and s.job.partition("_")[2].isdigit()
    }
    return sorted(set(range(tasks)) - there)
