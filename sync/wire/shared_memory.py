"""Memory of one process that other processes on its node can map: CUDA IPC for a GPU's memory, memfd for the host's.

Neither outlives its processes, so nothing is left in /dev/shm when a process is killed.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import msgspec
import torch

# Each host tensor's address and the file descriptor of its memory, which is closed with the tensor.
_descriptors: dict[int, int] = {}


class Exported(msgspec.Struct, frozen=True, array_like=True):
    """Everything another process needs to map uint8 [nbytes]: a file descriptor, or the fields of a CUDA IPC handle."""

    node: str
    pid: int
    nbytes: int
    descriptor: int = -1
    gpu: str = ""  # UUID, since processes may number the GPUs differently
    cuda: tuple[bytes, int, int, bytes, int, bytes, bool] | None = None


class NotMappable(RuntimeError):
    """This process cannot reach the memory: it belongs to another node, user, container or GPU."""


def allocate(nbytes: int, device: torch.device) -> torch.Tensor:
    """Allocates zeros, uint8 [nbytes], in memory that can be exported."""
    if device.type == "cuda":
        return torch.zeros(nbytes, dtype=torch.uint8, device=device)
    descriptor = os.memfd_create("verst-weights")
    os.ftruncate(descriptor, max(1, nbytes))
    tensor = torch.frombuffer(mmap.mmap(descriptor, max(1, nbytes)), dtype=torch.uint8)[:nbytes]
    address = tensor.data_ptr()
    _descriptors[address] = descriptor
    weakref.finalize(tensor.untyped_storage(), _close, address, descriptor)
    return tensor


def _close(address: int, descriptor: int) -> None:
    os.close(descriptor)
    # The memory was freed before this call, so another thread may have got the same address in the meantime.
    if _descriptors.get(address) == descriptor:
        del _descriptors[address]


def export(tensor: torch.Tensor) -> Exported:
    """Describes memory for `map_exported` in another process. `tensor` is the whole result of an `allocate`."""
    if not tensor.is_cuda:
        return Exported(_node(), os.getpid(), len(tensor), descriptor=_descriptors[tensor.data_ptr()])
    fields: Any = tensor.untyped_storage()._share_cuda_()
    gpu = str(torch.cuda.get_device_properties(tensor.device).uuid)
    return Exported(_node(), os.getpid(), len(tensor), gpu=gpu, cuda=tuple(fields[1:]))


def map_exported(memory: Exported) -> torch.Tensor:
    """Maps another process's memory into this one. Raises NotMappable if it cannot be reached."""
    if memory.node != _node():
        raise NotMappable("it is on another node")
    try:
        if memory.cuda is None:
            path = f"/proc/{memory.pid}/fd/{memory.descriptor}"
            with open(path, "r+b") as file:
                return torch.frombuffer(mmap.mmap(file.fileno(), memory.nbytes), dtype=torch.uint8)
        storage = torch.UntypedStorage._new_shared_cuda(_gpu(memory.gpu), *memory.cuda)
    except (OSError, ValueError, RuntimeError) as error:
        raise NotMappable(str(error)) from error
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[: memory.nbytes]


def _gpu(uuid: str) -> int:
    for index in range(torch.cuda.device_count()):
        if str(torch.cuda.get_device_properties(index).uuid) == uuid:
            return index
    raise NotMappable(f"this process does not see GPU {uuid}")


def _node() -> str:
    """Identifies the kernel and the PID namespace: equal in two processes only if they share both."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
