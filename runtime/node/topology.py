"""Reads a node's hardware topology: the usable CPUs by NUMA node, and which GPUs and NICs are near to them.

It is read from sysfs and nvidia-smi, so that no driver is loaded into the calling process.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_NVIDIA_SMI_S = 60.0  # without its persistence daemon a node's driver takes a while to answer


@dataclass(frozen=True)
class NumaNode:
    """The part of one NUMA node that this process may use."""

    number: int
    cores: tuple[tuple[int, ...], ...]  # for each core the CPU numbers of its hardware threads

    @property
    def cpus(self) -> tuple[int, ...]:
        """All CPU numbers, in order."""
        return tuple(sorted(cpu for core in self.cores for cpu in core))


@dataclass(frozen=True)
class Topology:
    """The CPUs that this process may use (at least one core), and the NUMA nodes of the GPUs and NICs."""

    nodes: tuple[NumaNode, ...]
    gpus: Mapping[str, int] = field(default_factory=dict)  # name as in CUDA_VISIBLE_DEVICES -> NUMA node
    nics: Mapping[str, int] = field(default_factory=dict)  # ports that are up, "mlx5_0:1" -> NUMA node


def read_topology(
    allowed: Iterable[int], gpus: Mapping[str, str] | None = None, sys: Path = Path("/sys")
) -> Topology:
    """Reads the topology from sysfs, with only the CPUs in `allowed`.

    `gpus` gives the PCI bus id for each name that CUDA_VISIBLE_DEVICES may use (`gpu_bus_ids`). A kernel
    without NUMA, as in many virtual machines, counts as one NUMA node. GPUs and NICs that are near none of
    the nodes are left out.
    """
    ours = set(allowed)
    nodes = []
    for folder in sorted((sys / "devices/system/node").glob("node[0-9]*"), key=_number):
        cpus = ours & set(parse_cpus((folder / "cpulist").read_text()))
        if cpus:
            nodes.append(NumaNode(_number(folder), _cores(cpus, sys)))
    missing = ours - {cpu for node in nodes for cpu in node.cpus}
    if missing:
        nodes = [NumaNode(0, _cores(ours, sys))]
    near = {node.number for node in nodes}
    of_gpus = {name: _numa_of(sys / "bus/pci/devices" / bus) for name, bus in (gpus or {}).items()}
    of_nics = {
        f"{port.parent.parent.name}:{port.name}": _numa_of(port.parent.parent / "device")
        for port in sorted((sys / "class/infiniband").glob("*/ports/*"))
        if "ACTIVE" in _text(port / "state")
    }
    return Topology(
        tuple(nodes),
        {name: node for name, node in of_gpus.items() if node in near},
        {name: node for name, node in of_nics.items() if node in near},
    )


def gpu_bus_ids() -> dict[str, str]:
    """The PCI bus id of each GPU, by its number and by its UUID. Raises OSError if nvidia-smi fails.

    GPUs are numbered in the order of the PCI bus. CUDA uses the same order where a node's GPUs are all alike.
    """
    command = ["nvidia-smi", "--query-gpu=index,uuid,pci.bus_id", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S)
    except subprocess.TimeoutExpired:
        raise OSError(f"{' '.join(command)}: no answer in {_NVIDIA_SMI_S:.0f} s") from None
    if answer.returncode != 0:
        raise OSError(f"{' '.join(command)}: {(answer.stderr or answer.stdout).strip()}")
    return parse_bus_ids(answer.stdout)


def parse_bus_ids(answer: str) -> dict[str, str]:
    """Parses nvidia-smi's lines.

    "0, GPU-4af1…, 00000000:1B:00.0" becomes {"0": "0000:1b:00.0", "GPU-4af1…": "0000:1b:00.0"}.
    """
    found = {}
    for line in filter(None, answer.splitlines()):
        index, uuid, bus = (part.strip() for part in line.split(","))
        domain, _, rest = bus.partition(":")
        found[index] = found[uuid] = f"{domain[-4:]}:{rest}".lower()  # sysfs uses four digits for the domain
    return found


def parse_cpus(text: str) -> list[int]:
    """Parses a list of CPUs as the kernel writes it: "0-3,8" -> 0 1 2 3 8.

    It is empty for a NUMA node without CPUs.
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def format_cpus(cpus: Iterable[int]) -> str:
    """Writes a list of CPUs as the kernel does: 0 1 2 3 8 -> "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def _cores(cpus: set[int], sys: Path) -> tuple[tuple[int, ...], ...]:
    """Groups CPUs by the core that they share. Cores are in the order of their first CPU."""
    cores: dict[tuple[int, ...], None] = {}
    for cpu in sorted(cpus):
        siblings = _text(sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        cores[tuple(sorted(cpus & set(parse_cpus(siblings)) | {cpu}))] = None
    return tuple(cores)


def _numa_of(device: Path) -> int:
    """The NUMA node of a device's bus, or -1 if the kernel does not know it."""
    return int(_text(device / "numa_node") or -1)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # some kernels and containers lack some of the files
        return ""


def _number(folder: Path) -> int:
    match = re.search(r"\d+$", folder.name)
    assert match is not None
    return int(match[0])


def allowed_cpus() -> frozenset[int]:
    """The CPUs that this process may run on, as limited by its cgroup and its parent."""
    return frozenset(os.sched_getaffinity(0))
