"""Who a Slurm task is, from the variables that Slurm gave it: no call to Slurm, no look at the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from submitit.slurm.slurm import _parse_node_list


class NotInSlurmError(RuntimeError):
    """A variable that Slurm sets in each task is missing."""


@dataclass(frozen=True)
class TaskEnvironment:
    """One task: the agent of one node."""

    job: str  # SLURM_JOB_ID: of an array's task its own, not the array's
    array: str | None  # SLURM_ARRAY_JOB_ID
    index: int  # SLURM_ARRAY_TASK_ID, or 0 outside an array
    restart: int  # times that Slurm has requeued the job
    node: int  # which of the job's nodes this is; in a heterogeneous job, of the component's
    hosts: tuple[str, ...]  # the job's (the component's) nodes, in the order of their numbers

    @property
    def life(self) -> str:
        """Names this start of this job among all of the run: no two lives share it."""
        return f"{self.job}.{self.restart}"

    @property
    def name(self) -> str:
        """As people see the job in squeue: "1234_0".

        Commands need this one: the SLURM_JOB_ID of one of an array's tasks is the whole array's number.
        """
        return self.job if self.array is None else f"{self.array}_{self.index}"

    @staticmethod
    def read(environ: Mapping[str, str] = os.environ) -> TaskEnvironment:
        """Of this process. Raises NotInSlurmError when it is not a task of a job step."""
        missing = [name for name in ("SLURM_JOB_ID", "SLURM_NODEID") if name not in environ]
        if missing:
            raise NotInSlurmError(
                f"{', '.join(missing)} not set: this is started by srun within a job, see `verst submit`"
            )
        node, hosts = _place(environ)
        return TaskEnvironment(
            job=environ["SLURM_JOB_ID"],  # in every component of a heterogeneous job the first one's
            array=environ.get("SLURM_ARRAY_JOB_ID"),
            index=int(environ.get("SLURM_ARRAY_TASK_ID", 0)),
            restart=int(environ.get("SLURM_RESTART_COUNT", 0)),  # unset, not 0, in the first life
            node=node,
            hosts=hosts,
        )


def _place(environ: Mapping[str, str]) -> tuple[int, tuple[str, ...]]:
    """This node's number and the nodes that it is one of."""
    node = int(environ["SLURM_NODEID"])
    for component in range(int(environ.get("SLURM_HET_SIZE", 0))):
        # One srun for all components numbers the nodes through.
        hosts = expand_hosts(environ[f"SLURM_JOB_NODELIST_HET_GROUP_{component}"])
        if node < len(hosts):
            return node, hosts
        node -= len(hosts)
    return node, expand_hosts(environ.get("SLURM_JOB_NODELIST", ""))


def expand_hosts(node_list: str) -> tuple[str, ...]:
    """Slurm's compressed list: "n[1-3,7],login" -> n1 n2 n3 n7 login."""
    return tuple(_parse_node_list(node_list)) if node_list else ()
