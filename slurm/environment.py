"""Reads a Slurm task's identity from its environment variables, without calling Slurm or using the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from submitit.slurm.slurm import _parse_node_list


class NotInSlurmError(RuntimeError):
    """A variable that Slurm sets in every task is missing."""


@dataclass(frozen=True)
class TaskEnvironment:
    """The identity of one task: one node of a job."""

    job: str  # SLURM_JOB_ID: a task of an array has its own, different from the array's
    array: str | None  # SLURM_ARRAY_JOB_ID
    index: int  # SLURM_ARRAY_TASK_ID, or 0 outside an array
    restart: int  # how often Slurm has requeued the job
    node: int  # number of this node in the job or, in a heterogeneous job, in its component
    hosts: tuple[str, ...]  # nodes of the job or component, in the order of their numbers

    @property
    def life(self) -> str:
        """A name for this start of this job, unique among all starts of all jobs of a run."""
        return f"{self.job}.{self.restart}"

    @property
    def name(self) -> str:
        """The job's id as squeue shows it: "1234_0".

        Slurm's commands need this id: one task of an array has the whole array's number as its SLURM_JOB_ID.
        """
        return self.job if self.array is None else f"{self.array}_{self.index}"

    @staticmethod
    def read(environ: Mapping[str, str] = os.environ) -> TaskEnvironment:
        """Reads the identity of this process. Raises NotInSlurmError when it is not a task of a job step."""
        missing = [name for name in ("SLURM_JOB_ID", "SLURM_NODEID") if name not in environ]
        if missing:
            raise NotInSlurmError(
                f"{', '.join(missing)} not set: this program must be started by srun within a job; use `verst submit`"
            )
        node, hosts = _place(environ)
        return TaskEnvironment(
            job=environ[
                "SLURM_JOB_ID"
            ],  # every component of a heterogeneous job has the first component's id
            array=environ.get("SLURM_ARRAY_JOB_ID"),
            index=int(environ.get("SLURM_ARRAY_TASK_ID", 0)),
            restart=int(
                environ.get("SLURM_RESTART_COUNT", 0)
            ),  # Slurm does not set it before the first requeue
            node=node,
            hosts=hosts,
        )


def _place(environ: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    """The number of this node, and the nodes of its job or component."""
    node = int(environ["SLURM_NODEID"])
    for component in range(int(environ.get("SLURM_HET_SIZE", 0))):
        # One srun starts all components and numbers their nodes consecutively.
        hosts = expand_hosts(environ[f"SLURM_JOB_NODELIST_HET_GROUP_{component}"])
        if node < len(hosts):
            return node, hosts
        node -= len(hosts)
    return node, expand_hosts(environ.get("SLURM_JOB_NODELIST", ""))


def expand_hosts(node_list: str) -> tuple[str, ...]:
    """Expands Slurm's compressed list of nodes: "n[1-3,7],login" -> n1 n2 n3 n7 login."""
    return tuple(_parse_node_list(node_list)) if node_list else ()
