"""Finds which CPUs the plan's processes will run on, as far as that is known before they start."""

from __future__ import annotations

from collections.abc import Mapping

from verst.launcher.plan.machine import Machine, Target
from verst.runtime.node.affinity import NotEnoughCpus, Place, assign
from verst.runtime.node.processes import claims, node_topology
from verst.runtime.node.topology import format_cpus
from verst.runtime.run.plan import Plan, Process


def known_places(plan: Plan, target: Target) -> tuple[dict[str, Place], list[str]]:
    """The CPUs of each process by its name, and remarks.

    Both are empty on a cluster: there the node agents choose the CPUs when they start the processes.
    """
    processes = plan.neighbours(next(iter(plan.groups)), 0) if isinstance(target, Machine) else []
    if not any(process.pin for process in processes):
        return {}, []
    remarks: list[str] = []
    devices = {
        p.name: tuple(filter(None, p.env.get("CUDA_VISIBLE_DEVICES", "").split(","))) for p in processes
    }
    topology = node_topology(any(devices[p.name] for p in processes if p.pin), remarks)
    try:
        return assign(topology, claims(processes, devices)), remarks
    except NotEnoughCpus as error:
        return {}, [*remarks, f"no process is pinned to CPUs: {error}"]


def cpus_in_words(process: Process, places: Mapping[str, Place], target: Target) -> str:
    """A process's CPUs, for the plan's table."""
    if (place := places.get(process.name)) is not None:
        return f"{format_cpus(place.cpus)} (NUMA {','.join(map(str, place.nodes))})"
    if process.pin is None or isinstance(target, Machine):
        return "any"
    if process.pin.cpus is not None:
        return f"{process.pin.cpus} on its node"
    return "a share, near its GPUs" if process.gpus else "a share"
