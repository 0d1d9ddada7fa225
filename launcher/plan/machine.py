"""What this machine offers to a local run: CPU cores and GPUs, found without importing torch."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """This machine: cores that this process may use, and GPUs as CUDA_VISIBLE_DEVICES names them."""

    cores: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeOffer:
    """What a job asks for on each of its nodes."""

    cores: int | None  # None: not said
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A Slurm cluster, as the recipe asks for it."""

    trainer: NodeOffer
    rollout: NodeOffer
    python: str  # of the nodes
    interface: str


Target = Machine | Cluster


def this_machine() -> Machine:
    """Looks at this machine. A CUDA_VISIBLE_DEVICES that is set (also to nothing) is respected.

    Raises RuntimeError when nvidia-smi is there but fails: a broken driver must not look like a CPU run.
    """
    return Machine(cores=len(os.sched_getaffinity(0)), gpus=_gpus())


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(device.strip() for device in visible.split(",") if device.strip())
    # nvidia-smi without a device is a leftover of an image that was built for GPU machines.
    if not glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if answer.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} failed: {answer.stdout.strip()} {answer.stderr.strip()}; "
            "set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
