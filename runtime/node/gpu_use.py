"""How full and how busy a node's GPUs are: measured through NVML by a small process of its own, read by the dashboard.

`python -m verst.runtime.node.gpu_use --run DIR --index K`, one on each node that has GPUs, under its agent. Not in the
agent, which must never wait for a driver. It measures the GPUs that CUDA_VISIBLE_DEVICES names and replaces
`gpus/<group>-<node>.json` in the run folder every ten seconds.
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
    """One GPU at one moment, with all that runs on it, ours or not."""

    name: str  # as CUDA_VISIBLE_DEVICES has it
    used: int  # bytes
    total: int  # bytes
    busy: float  # share of the last second in which it computed anything, 0 to 1


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """One node's GPUs, in the order of the node's places."""

    gpus: list[GpuUse]


def use_path(folder: RunFolder, group: str, node: int) -> Path:
    """Where a node's figures are."""
    return folder.root / "gpus" / f"{group}-{node}.json"


def of_process(process: Process, node: NodeUse) -> list[GpuUse]:
    """Those of a node's GPUs that a process has: by place, or by name where the plan has names."""
    if process.gpus is not None:
        return [node.gpus[place] for place in process.gpus if place < len(node.gpus)]
    names = process.env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [gpu for gpu in node.gpus if gpu.name in names]


def in_figures(gpus: Sequence[GpuUse]) -> tuple[int, int, float] | None:
    """Bytes used and there of several GPUs together, and how busy they are on average; None without any."""
    if not gpus:
        return None
    return sum(g.used for g in gpus), sum(g.total for g in gpus), sum(g.busy for g in gpus) / len(gpus)


def one_gpu(name: str, memory: Any, rates: Any) -> GpuUse:
    """From NVML's structures: memory in bytes, rates in percent."""
    return GpuUse(name=name, used=int(memory.used), total=int(memory.total), busy=rates.gpu / 100)


def measured(nvml: Any, handles: Mapping[str, Any]) -> NodeUse:
    """Asks NVML (the module `pynvml`) about GPUs by name."""
    memory, rates = nvml.nvmlDeviceGetMemoryInfo, nvml.nvmlDeviceGetUtilizationRates
    return NodeUse(gpus=[one_gpu(name, memory(handle), rates(handle)) for name, handle in handles.items()])


def find_handles(nvml: Any, names: Iterable[str]) -> dict[str, Any]:
    """NVML's handles of GPUs as CUDA_VISIBLE_DEVICES names them: by number, or by the beginning of a UUID."""
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
    """Measures until the agent ends it. A node whose GPUs cannot be asked goes without: exit code 1 and a reason."""
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
        say(f"the GPUs' use is not shown any more: {error}")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
