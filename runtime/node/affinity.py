"""Assigns CPUs, NUMA nodes and NICs to the processes of a node. Pure functions.

A process with GPUs is put on the NUMA nodes of its GPUs, any other where there is most room. Processes that
work at the same time share no core; processes that take turns (`Claim.turn`) do. Memory needs no settings:
Linux gives a thread pages of the NUMA node that it runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verst.runtime.node.topology import NumaNode, Topology, format_cpus

# A rank has threads for autograd and communication beside its main one; an engine is several processes.
LEAST_CPUS = 2
# Of a process with GPUs. Its threads only feed them: more would cost more in wake-ups than they gain.
_MOST_THREADS = 8


@dataclass(frozen=True)
class Claim:
    """The CPUs that one process asks for."""

    name: str
    gpus: tuple[str, ...] = ()  # names as in CUDA_VISIBLE_DEVICES
    cpus: int | None = None  # how many; None: an equal share of the CPUs that others leave
    turn: int = 0  # processes of different turns do not work at the same time


@dataclass(frozen=True)
class Place:
    """Where one process runs."""

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]  # the NUMA nodes of these CPUs
    nics: tuple[str, ...]  # on the same NUMA nodes, "mlx5_0:1"
    portion: float = 1.0  # of the time of these CPUs, where a quota of the cgroup allows less

    def threads(self, ranks: int, gpus: bool) -> int:
        """How many threads each of the process's `ranks` should compute with. `gpus`: whether it has GPUs."""
        share = max(1, int(len(self.cpus) * self.portion) // ranks)
        return min(share, _MOST_THREADS) if gpus else share

    def nic_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Variables that tell NCCL and UCX to use the near NICs, except those set in `environ` already."""
        if not self.nics:
            return {}
        named = {
            "NCCL_IB_HCA": "=" + ",".join(self.nics),  # "=": exact names, not prefixes
            "UCX_NET_DEVICES": ",".join(self.nics),
        }
        return {name: value for name, value in named.items() if name not in environ}

    def __str__(self) -> str:
        numa = ",".join(map(str, self.nodes))
        return f"CPUs {format_cpus(self.cpus)} (NUMA {numa})"


class NotEnoughCpus(ValueError):
    """The machine has too few CPUs for its processes to have their own. The message says for which."""


def assign(topology: Topology, claims: Sequence[Claim]) -> dict[str, Place]:
    """Assigns a place to each claim, by name. Raises NotEnoughCpus if one would get fewer CPUs than it needs.

    Within one turn, each core belongs to at most one claim. A claim's CPUs are on the NUMA nodes of its GPUs,
    where these are known. The order of the claims only decides who gets which of several equal cores.
    """
    places: dict[str, Place] = {}
    for turn in sorted({claim.turn for claim in claims}):
        places |= _assign_turn(topology, [claim for claim in claims if claim.turn == turn])
    return places


def _assign_turn(topology: Topology, claims: list[Claim]) -> dict[str, Place]:
    cpus: dict[str, list[int]] = {claim.name: [] for claim in claims}
    weights = _weights(topology, claims)
    for node in topology.nodes:
        here = [
            (claim, weights[claim.name][node.number])
            for claim in claims
            if weights[claim.name].get(node.number)
        ]
        for claim, cores in _share_out(node, here, weights):
            cpus[claim.name] += [cpu for core in cores for cpu in core]
    places = {}
    for claim in claims:
        mine = tuple(sorted(cpus[claim.name]))
        least = claim.cpus or LEAST_CPUS
        if len(mine) < least:
            raise NotEnoughCpus(
                f"{claim.name} would get {len(mine)} of {_count(topology)} CPUs but needs {least}"
            )
        nodes = tuple(node.number for node in topology.nodes if set(node.cpus) & set(mine))
        nics = tuple(name for name, node in topology.nics.items() if node in nodes)
        places[claim.name] = Place(mine, nodes, nics)
    return places


def _weights(topology: Topology, claims: Iterable[Claim]) -> dict[str, dict[int, float]]:
    """How much of each claim belongs to which NUMA node: the nodes of its GPUs, else those with most room.

    Returns {claim name: {NUMA node: weight}}.
    """
    weights: dict[str, dict[int, float]] = {}
    load = {node.number: 0.0 for node in topology.nodes}
    room = {node.number: len(node.cpus) for node in topology.nodes}
    anywhere = []
    for claim in claims:
        near = [topology.gpus[gpu] for gpu in claim.gpus if gpu in topology.gpus]
        if not near:
            anywhere.append(claim)
            continue
        weights[claim.name] = {node: near.count(node) for node in near}
        for node in near:
            load[node] += 1
    wide = max(1, len(topology.nodes) // len(anywhere)) if anywhere else 1  # over how many nodes each spreads
    for claim in anywhere:
        weight = max(1, len(claim.gpus))
        chosen = sorted(load, key=lambda node: (load[node] / room[node], node))[:wide]
        weights[claim.name] = {node: weight / wide for node in chosen}
        for node in chosen:
            load[node] += weight / wide
    return weights


def _share_out(
    node: NumaNode, here: list[tuple[Claim, float]], weights: Mapping[str, Mapping[int, float]]
) -> list[tuple[Claim, Sequence[tuple[int, ...]]]]:
    """Shares out whole cores of one NUMA node: first to claims that ask for a number of CPUs, then by the weights.

    `here` has the claims on this node with their weights.
    """
    cores = list(node.cores)
    given: list[tuple[Claim, Sequence[tuple[int, ...]]]] = []
    for claim, weight in here:
        if claim.cpus is None:
            continue
        wanted = claim.cpus * weight / sum(weights[claim.name].values())
        taken: list[tuple[int, ...]] = []
        while cores and sum(map(len, taken)) < wanted:
            taken.append(cores.pop(0))
        given.append((claim, taken))
    sharing = [(claim, weight) for claim, weight in here if claim.cpus is None]
    total, before = sum(weight for _, weight in sharing), 0.0
    for claim, weight in sharing:
        first, last = round(before / total * len(cores)), round((before + weight) / total * len(cores))
        before += weight
        given.append((claim, cores[first:last]))
    return given


def _count(topology: Topology) -> int:
    return sum(len(node.cpus) for node in topology.nodes)
