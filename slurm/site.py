"""Reads a cluster's configuration: its partitions, and how it preempts and requeues jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from verst.slurm.programs import SlurmError, call

Restart = Literal["requeue", "resubmit", "chain"]


@dataclass(frozen=True)
class Partition:
    """One partition, as `scontrol show partition` describes it."""

    name: str
    default: bool
    state: str
    nodes: int
    max_time: str
    preempt_mode: str
    grace_s: int
    priority_tier: int


@dataclass(frozen=True)
class Site:
    """The cluster's configuration (`scontrol show config`) and its partitions."""

    config: dict[str, str]
    partitions: dict[str, Partition]

    @staticmethod
    def look() -> Site:
        """Reads both from slurmctld. Raises SlurmError."""
        pairs = (line.partition("=") for line in call(["scontrol", "show", "config"]).splitlines())
        config = {key.strip(): value.strip() for key, separator, value in pairs if separator}
        partitions = map(_partition, call(["scontrol", "show", "partition", "-o"]).splitlines())
        return Site(config, {p.name: p for p in partitions if p is not None})

    @property
    def version(self) -> str:
        """Slurm's version."""
        return self.config.get("SLURM_VERSION", "unknown")

    @property
    def kill_wait_s(self) -> int:
        """Seconds between SIGTERM and SIGKILL."""
        return _first_number(self.config.get("KillWait", ""), default=30)

    @property
    def signals_preemption(self) -> bool:
        """Whether Slurm sends a job's --signal at preemption too, not only before the time limit."""
        parameters = self.config.get("SlurmctldParameters", "") + self.config.get("PreemptParameters", "")
        return "send_user_signal" in parameters

    def partition_of(self, options: dict[str, bool | int | str]) -> Partition | None:
        """The first partition named in a job's options, else the default partition; None if it does not exist."""
        name = str(options.get("partition", "")).split(",")[0]
        if name:
            return self.partitions.get(name)
        return next((p for p in self.partitions.values() if p.default), None)

    def restart(self, partition: Partition | None) -> Restart:
        """How an interrupted job restarts here: "requeue", or "resubmit" where jobs are cancelled or not requeued."""
        mode = partition.preempt_mode if partition else self.config.get("PreemptMode", "")
        forbidden = self.config.get("JobRequeue") == "0"
        return "resubmit" if forbidden or "CANCEL" in mode else "requeue"


def _partition(line: str) -> Partition | None:
    fields = dict(pair.split("=", 1) for pair in line.split() if "=" in pair)
    if "PartitionName" not in fields:
        return None
    return Partition(
        name=fields["PartitionName"],
        default=fields.get("Default") == "YES",
        state=fields.get("State", ""),
        nodes=int(fields.get("TotalNodes", 0)),
        max_time=fields.get("MaxTime", ""),
        preempt_mode=fields.get("PreemptMode", ""),
        grace_s=_first_number(fields.get("GraceTime", ""), default=0),
        priority_tier=int(fields.get("PriorityTier", 0)),
    )


def _first_number(text: str, default: int) -> int:
    match = re.search(r"\d+", text)
    return int(match[0]) if match else default


__all__ = ["Partition", "Restart", "Site", "SlurmError"]
