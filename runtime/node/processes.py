"""Prepares the processes that plan.json has for a node, with this node's GPUs, CPUs and address."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from verst.runtime.node.affinity import Claim, NotEnoughCpus, Place, assign
from verst.runtime.node.cpu_quota import usable_cores
from verst.runtime.node.environment import node_environment
from verst.runtime.node.supervise import Child
from verst.runtime.node.topology import Topology, allowed_cpus, gpu_bus_ids, read_topology
from verst.runtime.run.blame import follows_another
from verst.runtime.run.ending import GAVE_UP, STOPPED
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Plan, Process


@dataclass
class Watched:
    """One process of the plan and its present life."""

    process: Process
    env: dict[str, str]  # added to the agent's own environment
    log: Path
    cpus: Sequence[int] = ()  # CPUs that it may run on; empty: all of the agent's
    child: Child | None = None
    restarts: int = 0
    start_at: float | None = None  # monotonic: when to start it again
    started_at: float = 0.0  # monotonic
    quiet_until: float | None = None  # monotonic: it exited with 0, and the run should end by then

    @property
    def echoes_another(self) -> bool:
        """Whether its end looks like a consequence of another process's end (`run/blame.py`)."""
        child = self.child
        if child is None or child.code in (0, STOPPED, GAVE_UP):
            return False
        return follows_another(child.code, child.last_lines())


class NodeProcesses:
    """The processes of one node of the plan, which this machine is to run."""

    def __init__(self, plan: Plan, folder: RunFolder, group: str, node: int, *, shielded: bool) -> None:
        """`shielded`: the processes ignore signals that a cluster sends to the whole job.

        Raises SystemExit if the plan has no such node, and ValueError if this machine lacks what the plan
        requires.
        """
        nodes = plan.groups.get(group)
        if nodes is None:
            raise SystemExit(f"{folder.plan} has no group {group!r}; it has: {', '.join(plan.groups)}")
        if not 0 <= node < len(nodes):
            raise SystemExit(f"{folder.plan}: group {group} has nodes 0 to {len(nodes) - 1}, not {node}")
        self.remarks: list[str] = []  # lines for the agent's log
        self._processes = nodes[node].processes
        self._folder = folder
        self._of_all = {"VERST_RUN": str(folder.root), "VERST_GROUP": group, "VERST_NODE": str(node)}
        self._of_all |= {"VERST_SHIELDED": "1"} if shielded else {}
        self._of_node = node_environment(plan.host)
        neighbours = plan.neighbours(group, node)
        devices = {p.name: self._devices(p) for p in neighbours}
        self._visible = {name: ",".join(names) for name, names in devices.items()}
        self._places = self._place(neighbours, devices)

    def watched(self, generation: int, logs: Path) -> list[Watched]:
        """The processes in the plan's order, all due to start."""
        return [self._watched(process, generation, logs) for process in self._processes]

    def _watched(self, process: Process, generation: int, logs: Path) -> Watched:
        identity = {
            **self._of_all,
            "VERST_GENERATION": str(generation),
            "VERST_ROLE": process.role,
            "VERST_INDEX": str(process.index),
        }
        env = {"PYTHONUNBUFFERED": "1", **self._of_node.variables, **process.env, **identity}
        if process.gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = self._visible[process.name]
        place = self._places.get(process.name)
        env |= place_environment(process, place, os.environ)
        cpus = () if place is None else place.cpus
        return Watched(process, env, logs / f"{process.name}.log", cpus, start_at=0.0)

    def _devices(self, process: Process) -> tuple[str, ...]:
        if process.gpus is not None:
            return tuple(filter(None, self._of_node.devices(process.name, process.gpus).split(",")))
        return tuple(filter(None, process.env.get("CUDA_VISIBLE_DEVICES", "").split(",")))

    def _place(
        self, processes: Sequence[Process], devices: Mapping[str, tuple[str, ...]]
    ) -> dict[str, Place]:
        if not any(process.pin for process in processes):
            return {}
        topology = node_topology(any(devices[p.name] for p in processes if p.pin), self.remarks)
        try:
            places = assign(topology, claims(processes, devices))
        except NotEnoughCpus as error:
            self.remarks.append(f"no process is pinned to CPUs: {error}")
            return {}
        cores, usable = len(allowed_cpus()), usable_cores()
        if usable < cores:
            self.remarks.append(f"a CPU quota allows {usable} of {cores} CPUs: processes get fewer threads")
            places = within_quota(places, cores, usable)
        mine = {process.name for process in self._processes}
        self.remarks += [f"{name} runs on {place}" for name, place in places.items() if name in mine]
        return places


def within_quota(places: Mapping[str, Place], cores: int, usable: int) -> dict[str, Place]:
    """The places with the share of their CPUs' time that a quota of `usable` of `cores` leaves.

    The kernel applies a quota to all processes together, wherever they run.
    """
    return {name: replace(place, portion=usable / cores) for name, place in places.items()}


def node_topology(with_gpus: bool, remarks: list[str]) -> Topology:
    """Reads this machine's topology, including its GPUs if `with_gpus`. Adds a remark if nvidia-smi fails."""
    buses: dict[str, str] = {}
    if with_gpus:
        try:
            buses = gpu_bus_ids()
        except OSError as error:
            remarks.append(f"the NUMA nodes of the GPUs are not known: {error}")
    return read_topology(allowed_cpus(), buses)


def claims(processes: Sequence[Process], devices: Mapping[str, tuple[str, ...]]) -> list[Claim]:
    """The claims of the processes that are to run on their own CPUs."""
    return [Claim(p.name, devices[p.name], p.pin.cpus, p.pin.turn) for p in processes if p.pin is not None]


def place_environment(process: Process, place: Place | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that follow from a process's place: threads, unless the plan sets them, and wanted NICs."""
    if process.pin is None:
        return {}
    found: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in process.env:
        threads = 1 if place is None else place.threads(process.pin.ranks, bool(process.gpus))
        found["OMP_NUM_THREADS"] = str(threads)
    if place is not None and process.pin.near_nics:
        found |= place.nic_environment({**environ, **process.env})
    return found
