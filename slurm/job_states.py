"""What became of jobs, from squeue and, where the site has it, sacct: never a guess."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from verst.slurm.programs import SlurmError, call

_WORDS = {
    "PENDING": "waits in the queue",
    "RUNNING": "runs",
    "SUSPENDED": "is suspended: Slurm lets it go on later",
    "CONFIGURING": "has its nodes, which are being made ready",
    "COMPLETING": "is ending",
    "COMPLETED": "has ended well",
    "TIMEOUT": "reached its time limit",
    "PREEMPTED": "gave its nodes to a job of higher priority",
    "NODE_FAIL": "lost a node",
    "OUT_OF_MEMORY": "was ended because it used more memory than it had asked for (`mem`)",
    "CANCELLED": "was cancelled",
    "FAILED": "failed",
    "DEADLINE": "was ended by its deadline",
    "BOOT_FAIL": "got a node that did not boot",
    "REQUEUED": "goes back into the queue",
    "REQUEUE_HOLD": "was requeued and is held: `scontrol release` lets it go on",
    "SPECIAL_EXIT": "was requeued and is held: `scontrol release` lets it go on",
    "STOPPED": "is stopped by a signal",
    "GONE": "is no longer known to Slurm",
}
_ENDED = {
    "COMPLETED",
    "TIMEOUT",
    "PREEMPTED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "CANCELLED",
    "FAILED",
    "DEADLINE",
    "BOOT_FAIL",
    "GONE",
}
_REASONS = {
    "BeginTime": "Slurm holds a requeued job back for a while",
    "Priority": "others come first",
    "Resources": "no free nodes yet",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "the job that it waits for will not make it possible: `verst resume` submits again",
    "JobArrayTaskLimit": "slurm.throttle lets no more of its array run",
    "job requeued in held state": "held since it was requeued: `scontrol release` lets it go on",
    "JobHeldUser": "held by its user: `scontrol release` lets it go on",
    "JobHeldAdmin": "held by an administrator",
    "QOSMaxJobsPerUserLimit": "its QOS allows no more jobs of this user",
    "PartitionTimeLimit": "asks for more time than the partition gives",
    "PartitionNodeLimit": "asks for more nodes than the partition gives",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "PartitionDown": "the partition is down",
}


@dataclass(frozen=True)
class JobState:
    """One job, one task of an array, or one component of a heterogeneous job."""

    job: str  # "1234", "1234_0" or "1234+0"
    state: str  # Slurm's word: "RUNNING", …; "GONE" when neither squeue nor sacct knows the job
    reason: str = ""  # why it waits, in Slurm's word
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run (again) by itself."""
        return self.state in _ENDED

    def words(self) -> str:
        """For a person."""
        text = _WORDS.get(self.state, self.state.lower())
        if self.state == "PENDING" and self.reason not in ("", "None"):
            text += f" ({_REASONS.get(self.reason, self.reason)})"
        return f"{text} on {self.nodes}" if self.state == "RUNNING" and self.nodes else text


def job_states(jobs: Iterable[str]) -> dict[str, list[JobState]]:
    """The state of each job's tasks or components, by the job's id (an array's: "1234"). Raises SlurmError.

    squeue knows a job while it lives and for some minutes more (MinJobAge), sacct for good where the site
    keeps accounts. A job that neither knows is "GONE".
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    found = _from_squeue(wanted)
    unknown = [job for job in wanted if not found.get(job)]
    if unknown:
        found |= _from_sacct(unknown)
    return {job: found.get(job) or [JobState(job, "GONE")] for job in wanted}


def _from_squeue(jobs: list[str]) -> dict[str, list[JobState]]:
    try:
        lines = call(["squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N", "-j", ",".join(jobs)])
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        if len(jobs) == 1:
            return {}
        # One unknown id spoils the answer for all of them.
        return {job: states for one in jobs for job, states in _from_squeue([one]).items()}
    return _by_job(lines.splitlines())


def _from_sacct(jobs: list[str]) -> dict[str, list[JobState]]:
    command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason,NodeList", "-j", ",".join(jobs)]
    try:
        return _by_job(call(command).splitlines())
    except SlurmError as error:
        if "accounting storage is disabled" in str(error) or "there is no sacct" in str(error):
            return {}
        raise


def _by_job(lines: list[str]) -> dict[str, list[JobState]]:
    found: dict[str, list[JobState]] = {}
    for line in lines:
        job, state, reason, nodes = (field.strip() for field in line.split("|", 3))
        # sacct says "CANCELLED by 1000"; a pending array's rest is "1234_[2-5%2]"
        task = JobState(re.sub(r"%\d+", "", job), state.split()[0].rstrip("+"), reason, nodes)
        found.setdefault(re.split("[_+]", job)[0], []).append(task)
    return found


def terminated_by(job: str, restarts: int) -> Literal["cancel", "preemption", "requeue", "unknown"]:
    """What sent SIGTERM to the processes of this job, which was requeued `restarts` times before it started.

    Slurm calls it COMPLETING in all cases, but a requeued job has been restarted once more already, and a
    preempted one has a PreemptTime. Raises SlurmError.
    """
    shown = call(["scontrol", "show", "job", "-o", job])
    fields = dict(re.findall(r"\b(JobState|PreemptTime|Restarts)=(\S+)", shown))
    if int(fields.get("Restarts", restarts)) > restarts:
        return "requeue"
    if fields.get("PreemptTime", "None") not in ("None", "N/A", "Unknown"):
        return "preemption"
    return "cancel" if fields.get("JobState") in ("COMPLETING", "CANCELLED") else "unknown"


def accounting_works() -> bool:
    """Whether sacct answers here."""
    try:
        return subprocess.run(["sacct", "-n", "-X"], capture_output=True, timeout=30).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
