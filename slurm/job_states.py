"""Asks Slurm for the states of jobs: squeue first, then sacct if the site has it. It never guesses a state."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from verst.slurm.programs import CommandMissing, SlurmError, call, call_once

_WORDS = {
    "PENDING": "waits in the queue",
    "RUNNING": "runs",
    "SUSPENDED": "is suspended: Slurm will continue it later",
    "CONFIGURING": "has its nodes, which are being prepared",
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
    "REQUEUE_HOLD": "was requeued and is held: `scontrol release` releases it",
    "SPECIAL_EXIT": "was requeued and is held: `scontrol release` releases it",
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
    "BeginTime": "Slurm delays a requeued job for a while",
    "Priority": "jobs of higher priority come first",
    "Resources": "no free nodes yet",
    "Dependency": "depends on another job",
    "DependencyNeverSatisfied": "the job that it depends on can no longer let it start: `verst resume` submits again",
    "JobArrayTaskLimit": "slurm.throttle allows no more tasks of its array",
    "job requeued in held state": "held since it was requeued: `scontrol release` releases it",
    "JobHeldUser": "held by its user: `scontrol release` releases it",
    "JobHeldAdmin": "held by an administrator",
    "QOSMaxJobsPerUserLimit": "its QOS allows no more jobs of this user",
    "PartitionTimeLimit": "requests more time than the partition allows",
    "PartitionNodeLimit": "requests more nodes than the partition allows",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "PartitionDown": "the partition is down",
}


@dataclass(frozen=True)
class JobState:
    """The state of one job, one task of an array, or one component of a heterogeneous job."""

    job: str  # "1234", "1234_0" or "1234+0"
    state: str  # Slurm's name: "RUNNING", …; "GONE" when neither squeue nor sacct knows the job
    reason: str = ""  # why it waits, Slurm's name
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job has ended and will not run again by itself."""
        return self.state in _ENDED

    def words(self) -> str:
        """The state in words, for people: "waits in the queue (no free nodes yet)"."""
        text = _WORDS.get(self.state, self.state.lower())
        if self.state == "PENDING" and self.reason not in ("", "None"):
            text += f" ({_REASONS.get(self.reason, self.reason)})"
        return f"{text} on {self.nodes}" if self.state == "RUNNING" and self.nodes else text


def job_states(jobs: Iterable[str]) -> dict[str, list[JobState]]:
    """The states of each job's tasks or components, by the id of the job or array ("1234"). Raises SlurmError.

    squeue knows a job until a few minutes after its end (MinJobAge). sacct knows it for good, if the site has
    accounting. A job that neither knows is "GONE".
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
        # With one unknown id squeue answers for none of them, so ask for each by itself.
        return {job: states for one in jobs for job, states in _from_squeue([one]).items()}
    return _by_job(lines.splitlines())


def _from_sacct(jobs: list[str]) -> dict[str, list[JobState]]:
    command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,Reason,NodeList", "-j", ",".join(jobs)]
    try:
        return _by_job(call(command).splitlines())
    except CommandMissing:
        return {}
    except SlurmError as error:
        if "accounting storage is disabled" in str(error):
            return {}
        raise


def _by_job(lines: list[str]) -> dict[str, list[JobState]]:
    found: dict[str, list[JobState]] = {}
    for line in lines:
        job, state, reason, nodes = (field.strip() for field in line.split("|", 3))
        # sacct prints "CANCELLED by 1000"; the waiting tasks of an array are "1234_[2-5%2]".
        task = JobState(re.sub(r"%\d+", "", job), state.split()[0].rstrip("+"), reason, nodes)
        found.setdefault(re.split("[_+]", job)[0], []).append(task)
    return found


TerminatedBy = Literal["cancel", "preemption", "requeue", "other", "unknown"]


def terminated_by(job: str, restarts: int) -> TerminatedBy:
    """Why Slurm sent SIGTERM to this job, which had been requeued `restarts` times when it started.

    The job's state is COMPLETING in all cases. But a requeued job already has a higher restart count, a
    preempted one has a PreemptTime, and one that lost a node or is over a limit ("other") has a Reason. Raises
    SlurmError.
    """
    shown = call(["scontrol", "show", "job", "-o", job])
    fields = dict(re.findall(r"\b(JobState|PreemptTime|Restarts|Reason)=(\S+)", shown))
    if int(fields.get("Restarts", restarts)) > restarts:
        return "requeue"
    if fields.get("PreemptTime", "None") not in ("None", "N/A", "Unknown"):
        return "preemption"
    if fields.get("JobState") not in ("COMPLETING", *_ENDED):
        return "unknown"
    return "cancel" if fields.get("Reason", "None") in ("None", "") else "other"


def accounting_works() -> bool:
    """Whether sacct works on this machine."""
    try:
        call_once(["sacct", "-n", "-X"], timeout_s=30)
    except SlurmError:
        return False
    return True
