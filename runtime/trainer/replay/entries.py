"""Routing entries on the device: copied while other micro-batches compute, and unpacked there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verst.runtime.trainer.model.replayed_routing import index_dtype
from verst.runtime.trainer.share.batch import Batch
from verst.sync.replay.routing import expert_bits


def unpack(entries: Tensor, experts: int, topk: int) -> Tensor:
    """uint8 [..., entry] (`sync/replay/routing.py`) -> indices [..., K]; of an unknown entry some valid ones."""
    bits = expert_bits(experts)
    if bits == 8:
        return entries if experts == 256 else entries.clamp(max=experts - 1)
    start = bits * torch.arange(topk, device=entries.device)
    low, shift = start // 8, (start % 8).int()
    spanned = -(-(bits + 7) // 8)  # bytes that an index can touch
    value = torch.zeros((*entries.shape[:-1], topk), dtype=torch.int32, device=entries.device)
    for i in range(spanned):
        at = (low + i).clamp(max=entries.shape[-1] - 1)
        value |= entries[..., at].int() << (8 * i)
    return ((value >> shift) & ((1 << bits) - 1)).clamp(max=experts - 1).to(index_dtype(experts))


class Entries:
    """The entries of a pass's micro-batches, each on the device from the moment it is asked for until its last chunk
    took it. On a GPU the next one is copied from pinned memory beside the kernels of the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._next: dict[int, Batch] = {}  # batch -> the one after it
        self._here: dict[int, Tensor] = {}

    def start(self, batches: Sequence[Batch]) -> None:
        """A pass over these, in this order."""
        self._here.clear()
        keys = [batch.key for batch in batches[:-1]]
        self._next = dict(zip(keys, batches[1:], strict=True))
        if batches:
            self._copy(batches[0])

    def take(self, batch: Batch, last: bool) -> Tensor:
        """uint8 [r, layers, entry] on the device; `last`: nobody asks for them again in this pass."""
        self._copy(batch)
        entries = self._here[batch.key]
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            entries.record_stream(torch.cuda.current_stream())
        if following := self._next.get(batch.key):
            self._copy(following)
        if last:
            del self._here[batch.key]
        return entries

    def _copy(self, batch: Batch) -> None:
        if batch.key in self._here or batch.routing is None:
            return
        if self._stream is None:
            self._here[batch.key] = batch.routing.to(self._device)
            return
        with torch.cuda.stream(self._stream):
            self._here[batch.key] = batch.routing.to(self._device, non_blocking=True)
