"""A run's jobs as its folder knows them: how they were to be launched, and each one that was submitted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from verst.launcher.progress import LineFollower
from verst.runtime.run_folder import RunFolder, append_line, write_atomically
from verst.slurm import JobState, job_states, submit
from verst.slurm.site import Restart


class GroupJobs(msgspec.Struct, frozen=True, kw_only=True):
    """One group's array: its script is `slurm/<group>.sh` in the run folder."""

    tasks: int
    nodes: int  # of each task


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What the nodes must know to bring the run back: `slurm/launch.json`."""

    restart: Restart
    stop_lead_s: int
    kill_wait_s: int
    max_failures: int
    groups: dict[str, GroupJobs]

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
    """One array that was submitted."""

    group: Literal["trainer", "rollout"]
    job: str  # "1234"
    why: str
    time: float


def is_on_slurm(folder: RunFolder) -> bool:
    """Whether a run was submitted."""
    return (folder.slurm / "launch.json").is_file()


def submit_group(folder: RunFolder, group: Literal["trainer", "rollout"], why: str, *options: str) -> str:
    """Submits a group's script and notes it. Returns the array's job id; raises SlurmError."""
    job = submit(folder.slurm / f"{group}.sh", *options)
    note = Submission(group=group, job=job, why=why, time=time.time())
    append_line(folder.slurm / "jobs.jsonl", msgspec.to_builtins(note))
    return job


def submissions(folder: RunFolder) -> list[Submission]:
    """All of the run's arrays, in order."""
    lines = LineFollower(folder.slurm / "jobs.jsonl").new_lines()
    return [msgspec.convert(json.loads(line), Submission) for line in lines]


def group_states(folder: RunFolder) -> dict[str, list[JobState]]:
    """The present state of every task that was submitted, by group. Raises SlurmError."""
    submitted = submissions(folder)
    states = job_states(s.job for s in submitted)
    found: dict[str, list[JobState]] = {}
    for submission in submitted:
        found.setdefault(submission.group, []).extend(states[submission.job])
    return found


def missing_tasks(states: Iterable[JobState], tasks: int) -> list[int]:
    """The indices of an array for which no job waits or runs."""
    there = {
        int(s.job.partition("_")[2] or 0) for s in states if not s.ended and s.job.partition("_")[2].isdigit()
    }
    return sorted(set(range(tasks)) - there)
