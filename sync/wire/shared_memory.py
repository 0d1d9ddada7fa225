"""Memory of one process that others of its node map: memfd without a GPU, CUDA IPC with one.

Neither outlives its processes: nothing is left behind in /dev/shm when one is killed.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import msgspec
import torch

# A tensor's address -> the descriptor of its memory. Descriptors close with the tensors.
_descriptors: dict[int, int] = {}


class Exported(msgspec.Struct, frozen=True, array_like=True):
    """What another process needs to map uint8 [nbytes]: a descriptor, or the fields of a CUDA IPC handle."""

    node: str
    pid: int
    nbytes: int
    descriptor: int = -1
    gpu: str = ""  # UUID: a process may number its GPUs otherwise
    cuda: tuple[bytes, int, int, bytes, int, bytes, bool] | None = None


class NotMappable(RuntimeError):
    """This process cannot reach that memory: another node, user, container or GPU."""


def allocate(nbytes: int, device: torch.device) -> torch.Tensor:
    """uint8 [nbytes] of zeros that can be exported."""
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
    # The memory went before: another thread may have been given the same address since.
    if _descriptors.get(address) == descriptor:
        del _descriptors[address]


def export(tensor: torch.Tensor) -> Exported:
    """For `map_exported` in another process. `tensor` is whole memory that `allocate` gave."""
    if not tensor.is_cuda:
        return Exported(_node(), os.getpid(), len(tensor), descriptor=_descriptors[tensor.data_ptr()])
    fields: Any = tensor.untyped_storage()._share_cuda_()
    gpu = str(torch.cuda.get_device_properties(tensor.device).uuid)
    return Exported(_node(), os.getpid(), len(tensor), gpu=gpu, cuda=tuple(fields[1:]))


def map_exported(memory: Exported) -> torch.Tensor:
    """The memory as this process sees it. Raises NotMappable."""
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
    """The same for two processes only where they share a kernel and process numbers."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
