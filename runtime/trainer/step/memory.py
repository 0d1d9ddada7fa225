"""Moves a trainer rank's memory off its device while engines work there: all of it, all but the weights, or
nothing.

It works on storages instead of tensors. Parameters are views of Megatron's buffers, and masters may be views
of parameters. A storage that is emptied and filled again keeps every view, whichever optimizer made it.

Gradients are freed and not copied, because each step begins by setting them to zero. The rest stays on the
device. It is small or cannot be moved: Megatron's tables and counters, NCCL's buffers, the CUDA context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from verst.runtime.messages.jobs import Hold, HoldReport
from verst.runtime.trainer.parallel import Parallel

_ALIGNMENT = 256  # of a storage's copy on the host, in bytes


class DeviceMemory:
    """The device memory of one rank.

    `hold` calls the three functions each time, because an optimizer creates its state in its first step.
    """

    def __init__(
        self,
        device: torch.device,
        weights: Callable[[], Iterable[Tensor]],
        state: Callable[[], Iterable[Tensor]],
        gradients: Callable[[], Iterable[Tensor]],
    ) -> None:
        self._device = device
        self._weights, self._state, self._gradients = weights, state, gradients
        self._away_weights = HostCopies(device)
        self._away_state = HostCopies(device)
        self._freed: list[tuple[torch.UntypedStorage, int]] = []  # of gradients, with their sizes in bytes
        self.holds: Hold = "all"

    def hold(self, what: Hold) -> HoldReport:
        """Moves memory so that the device holds `what`.

        Raises RuntimeError when the host has too little memory.
        """
        began = time.monotonic()
        # Moves that free device memory come first.
        if what != "all" and self.holds == "all":
            self._free_gradients()
            self._away_state.take(_storages(self._state(), but=self._weights()))
        if what == "nothing" and self.holds != "nothing":
            self._away_weights.take(_storages(self._weights()))
        if what != "nothing" and self.holds == "nothing":
            self._away_weights.give_back()
        if what == "all" and self.holds != "all":
            self._away_state.give_back()
            for storage, size in self._freed:
                storage.resize_(size)
            self._freed = []
        self.holds = what
        allocated = 0
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()  # an engine cannot use memory that this process's allocator caches
            allocated = torch.cuda.memory_allocated(self._device)
        return HoldReport(
            held=self._held(),
            offloaded=self._away_weights.bytes + self._away_state.bytes,
            allocated=allocated,
            seconds=time.monotonic() - began,
        )

    def _free_gradients(self) -> None:
        for storage in _storages(self._gradients(), but=[*self._weights(), *self._state()]):
            if storage.nbytes():
                self._freed.append((storage, storage.nbytes()))
                storage.resize_(0)

    def _held(self) -> int:
        tensors = [*self._weights(), *self._state(), *self._gradients()]
        return sum(storage.nbytes() for storage in _storages(tensors) if storage.device == self._device)


class HostCopies:
    """Copies of storages in one buffer on the host.

    The buffer is page-locked for a GPU, and kept for the next time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer: Tensor | None = None
        # Storage, offset in the buffer, size in bytes.
        self._taken: list[tuple[torch.UntypedStorage, int, int]] = []

    @property
    def bytes(self) -> int:
        """Number of bytes that are copied here."""
        return sum(size for _, _, size in self._taken)

    def take(self, storages: Iterable[torch.UntypedStorage]) -> None:
        """Copies storages here and empties them. Storages on another device stay as they are."""
        end = 0
        for storage in storages:
            if storage.device.type == self._device.type and storage.nbytes():
                self._taken.append((storage, end, storage.nbytes()))
                end += -(-storage.nbytes() // _ALIGNMENT) * _ALIGNMENT
        buffer = self._buffer_of(end)
        for storage, place, size in self._taken:
            buffer[place : place + size].copy_(_bytes(storage), non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the copies must end before their sources are freed
        for storage, _, _ in self._taken:
            storage.resize_(0)

    def give_back(self) -> None:
        """Fills the storages again from their copies."""
        taken, self._taken = self._taken, []
        for storage, place, size in taken:
            assert self._buffer is not None
            storage.resize_(size)
            _bytes(storage).copy_(self._buffer[place : place + size], non_blocking=True)

    def _buffer_of(self, size: int) -> Tensor:
        if self._buffer is None or self._buffer.nbytes < size:
            if self._buffer is not None:
                _lock_pages(self._buffer, self._device, False)
            self._buffer = torch.empty(size, dtype=torch.uint8)
            _lock_pages(self._buffer, self._device, True)
        return self._buffer


def _lock_pages(buffer: Tensor, device: torch.device, locked: bool) -> None:
    """Locks pages so that copies to and from the GPU run at full speed.

    torch could pin memory too, but only in sizes that are powers of two. Raises RuntimeError when CUDA
    refuses.
    """
    if device.type != "cuda" or not buffer.nbytes:
        return
    runtime: Any = torch.cuda.cudart()
    if locked:
        error = runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)
    else:
        error = runtime.cudaHostUnregister(buffer.data_ptr())
    if int(error) != 0:
        raise RuntimeError(
            f"{buffer.nbytes / 2**30:.1f} GiB of host memory, for the trainer while the engines work, "
            f"cannot be page-locked: CUDA error {int(error)}; ask for more memory (slurm.trainer.mem)"
        )


def begin_peak(device: torch.device) -> None:
    """Resets the peaks that `peak_gib` returns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(parallel: Parallel) -> dict[str, float]:
    """Returns the peaks of torch's allocated and reserved GPU memory, each on the rank where it is highest,
    in GiB.

    Empty without GPUs. Collective over the world.
    """
    device = parallel.device
    if device.type != "cuda":
        return {}
    peaks = {
        "gpu_peak_allocated_gib": torch.cuda.max_memory_allocated(device) / 2**30,
        "gpu_peak_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
    }
    return {name: parallel.world_max(gib) for name, gib in peaks.items()}


def _storages(tensors: Iterable[Tensor], but: Iterable[Tensor] = ()) -> list[torch.UntypedStorage]:
    """Returns the tensors' storages, each once, except those of `but`."""
    left_out = {tensor.untyped_storage()._cdata for tensor in but}
    found = {(s := tensor.untyped_storage())._cdata: s for tensor in tensors}
    return [storage for key, storage in found.items() if key not in left_out]


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """A view of a storage as uint8 [n]."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
