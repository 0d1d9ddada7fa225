"""The machine or cluster that a run is planned for: CPU cores and GPUs, found without importing torch."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from dataclasses import dataclass

from verst.runtime.node.cpu_quota import usable_cores


@dataclass(frozen=True)
class Machine:
    """This machine: how many cores this process may keep busy, and its GPUs as CUDA_VISIBLE_DEVICES names them."""

    cores: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeOffer:
    """The cores and GPUs that a job requests on each of its nodes."""

    cores: int | None  # None: the recipe does not say
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """A Slurm cluster, as far as the recipe describes it."""

    trainer: NodeOffer
    rollout: NodeOffer
    python: str  # the nodes' interpreter
    interface: str  # the network interface or address of the run's own traffic, or "auto"


Target = Machine | Cluster


def this_machine() -> Machine:
    """Finds this machine's cores and GPUs. CUDA_VISIBLE_DEVICES limits the GPUs; if it is empty, there are none.

    Raises RuntimeError when nvidia-smi fails, so that a broken driver does not lead to a run on the CPU.
    """
    return Machine(cores=usable_cores(), gpus=_gpus())


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(device.strip() for device in visible.split(",") if device.strip())
    # Images built for GPU machines have nvidia-smi even where there is no GPU.
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
