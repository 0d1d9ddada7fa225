"""Which CPUs, NUMA nodes and NICs each process of a node gets. Pure functions.

A process that has GPUs is put on the NUMA nodes of its GPUs, another where there is most room; processes that
work at the same time share no core, those that take turns (`Claim.turn`) do. Memory needs no word of ours:
Linux gives a thread pages of the node that it runs on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from verst.runtime.node.topology import NumaNode, Topology, format_cpus

# A rank has threads for autograd and communication beside its own, an engine is several processes.
LEAST_CPUS = 2
_MOST_THREADS = 8  # of a process with GPUs: they only feed it, and more cost more in wake-ups than they give


@dataclass(frozen=True)
class Claim:
    """What one process asks for."""

    name: str
    gpus: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them
    cpus: int | None = None  # so many; None: an equal share of what others leave
    turn: int = 0  # processes of different turns do not work at the same time


@dataclass(frozen=True)
class Place:
    """Where one process runs."""

    cpus: tuple[int, ...]
    nodes: tuple[int, ...]  # the NUMA nodes that these are on
    nics: tuple[str, ...]  # "mlx5_0:1", those on the same nodes

    def threads(self, ranks: int, gpus: bool) -> int:
        """How many threads each of the process's `ranks` should compute with."""
        share = max(1, len(self.cpus) // ranks)
        return min(share, _MOST_THREADS) if gpus else share

    def nic_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """NCCL and UCX told of the near NICs, unless `environ` tells them something else."""
        if not self.nics:
            return {}
        named = {
            "NCCL_IB_HCA": "=" + ",".join(self.nics),  # "=": these names, and not all that begin so
            "UCX_NET_DEVICES": ",".join(self.nics),
        }
        return {name: value for name, value in named.items() if name not in environ}

    def __str__(self) -> str:
        numa = ",".join(map(str, self.nodes))
        return f"CPUs {format_cpus(self.cpus)} (NUMA {numa})"


class NotEnoughCpus(ValueError):
    """The processes cannot have CPUs of their own here; says why."""


def assign(topology: Topology, claims: Sequence[Claim]) -> dict[str, Place]:
    """Each claim's place, by name. Raises NotEnoughCpus when one would get fewer than it needs.

    Among the claims of one turn each core belongs to one at most; every claim's CPUs are on its GPUs' NUMA
    nodes, where these are known. The order of the claims decides nothing but who gets which of equal cores.
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
                f"{claim.name} would get {len(mine)} of {_count(topology)} CPUs, and needs {least}"
            )
        nodes = tuple(node.number for node in topology.nodes if set(node.cpus) & set(mine))
        nics = tuple(name for name, node in topology.nics.items() if node in nodes)
        places[claim.name] = Place(mine, nodes, nics)
    return places


def _weights(topology: Topology, claims: Iterable[Claim]) -> dict[str, dict[int, float]]:
    """How much of each claim lies on which NUMA node: on the GPUs' nodes, else where there is most room."""
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
    wide = max(1, len(topology.nodes) // len(anywhere)) if anywhere else 1  # nodes that each may spread over
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
    """Whole cores of one NUMA node: first to those that say how many CPUs, then in proportion to the weights."""
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
