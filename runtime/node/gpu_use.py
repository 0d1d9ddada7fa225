"""Measures how full and how busy a node's GPUs are, for the dashboard.

`python -m verst.runtime.node.gpu_use --run DIR --index K` runs under the agent of each node with GPUs. It is
a process of its own because the agent must never wait for a driver. Every ten seconds it asks NVML about the
GPUs that CUDA_VISIBLE_DEVICES names, and replaces `gpus/<group>-<node>.json` in the run folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from verst.runtime.node.member_process import MemberProcess, say
from verst.runtime.run.folder import RunFolder, write_atomically
from verst.runtime.run.plan import Process

ROLE = "gpu_use"
EVERY_S = 10.0


class GpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one GPU at one moment, by all processes on it, ours or not."""

    name: str  # as in CUDA_VISIBLE_DEVICES
    used: int  # bytes
    total: int  # bytes
    busy: float  # share of the last second in which it computed something, 0 to 1


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one node's GPUs, in the order of `Process.gpus`' places."""

    gpus: list[GpuUse]


def use_path(folder: RunFolder, group: str, node: int) -> Path:
    """The file with a node's figures."""
    return folder.root / "gpus" / f"{group}-{node}.json"


def of_process(process: Process, node: NodeUse) -> list[GpuUse]:
    """The GPUs of a node that a process has, by place, or by name where the plan has names."""
    if process.gpus is not None:
        return [node.gpus[place] for place in process.gpus if place < len(node.gpus)]
    names = process.env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [gpu for gpu in node.gpus if gpu.name in names]


def in_figures(gpus: Sequence[GpuUse]) -> tuple[int, int, float] | None:
    """Sums up several GPUs: bytes used, bytes in total, and the mean of `busy`. None without GPUs."""
    if not gpus:
        return None
    return sum(g.used for g in gpus), sum(g.total for g in gpus), sum(g.busy for g in gpus) / len(gpus)


def one_gpu(name: str, memory: Any, rates: Any) -> GpuUse:
    """Converts NVML's structures: `memory` in bytes, `rates` in percent."""
    return GpuUse(name=name, used=int(memory.used), total=int(memory.total), busy=rates.gpu / 100)


def measured(nvml: Any, handles: Mapping[str, Any]) -> NodeUse:
    """Asks NVML (the module `pynvml`) about GPUs; `handles` are by GPU name."""
    memory, rates = nvml.nvmlDeviceGetMemoryInfo, nvml.nvmlDeviceGetUtilizationRates
    return NodeUse(gpus=[one_gpu(name, memory(handle), rates(handle)) for name, handle in handles.items()])


def find_handles(nvml: Any, names: Iterable[str]) -> dict[str, Any]:
    """NVML's handles of GPUs by their names in CUDA_VISIBLE_DEVICES: a number, or the beginning of a UUID."""
    there = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    uuids = [str(nvml.nvmlDeviceGetUUID(handle)) for handle in there]
    found = {}
    for name in names:
        if name.isdigit() and int(name) < len(there):
            found[name] = there[int(name)]
            continue
        for handle, uuid in zip(there, uuids, strict=True):
            if uuid.startswith(name):
                found[name] = handle
    return found


def main() -> None:
    """Measures until the agent ends the process. Exits with code 1 and a reason if NVML does not answer."""
    import pynvml

    process = MemberProcess.from_command_line()
    path = use_path(process.folder, os.environ["VERST_GROUP"], int(os.environ["VERST_NODE"]))
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        pynvml.nvmlInit()
        handles = find_handles(pynvml, filter(None, os.environ["CUDA_VISIBLE_DEVICES"].split(",")))
        while True:
            write_atomically(path, msgspec.json.encode(measured(pynvml, handles)))
            time.sleep(EVERY_S)
    except (pynvml.NVMLError, OSError) as error:
        say(f"the use of the GPUs is no longer measured: {error}")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
