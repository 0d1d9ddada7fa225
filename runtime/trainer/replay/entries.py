"""Copies routing entries to the device while other micro-batches compute, and unpacks them there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verst.runtime.trainer.model.replayed_routing import index_dtype
from verst.runtime.trainer.share.batch import Batch
from verst.sync.replay.routing import expert_bits


def unpack(entries: Tensor, experts: int, topk: int) -> Tensor:
    """Unpacks uint8 [..., entry] (`sync/replay/routing.py`) to indices [..., K].

    For an unknown entry the indices are valid but have no meaning.
    """
    bits = expert_bits(experts)
    if bits == 8:
        return entries if experts == 256 else entries.clamp(max=experts - 1)
    start = bits * torch.arange(topk, device=entries.device)
    low, shift = start // 8, (start % 8).int()
    spanned = -(-(bits + 7) // 8)  # bytes that one index can span
    value = torch.zeros((*entries.shape[:-1], topk), dtype=torch.int32, device=entries.device)
    for i in range(spanned):
        at = (low + i).clamp(max=entries.shape[-1] - 1)
        value |= entries[..., at].int() << (8 * i)
    return ((value >> shift) & ((1 << bits) - 1)).clamp(max=experts - 1).to(index_dtype(experts))


class Entries:
    """The entries of the micro-batches of one pass.

    Each micro-batch's entries are on the device from the first request until the last chunk has taken them.
    On a GPU the next micro-batch's entries are copied from pinned memory while the current one's kernels run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._next: dict[int, Batch] = {}  # batch -> the one after it
        self._here: dict[int, Tensor] = {}

    def start(self, batches: Sequence[Batch]) -> None:
        """Begins a pass over these micro-batches, in this order."""
        self._here.clear()
        keys = [batch.key for batch in batches[:-1]]
        self._next = dict(zip(keys, batches[1:], strict=True))
        if batches:
            self._copy(batches[0])

    def take(self, batch: Batch, last: bool) -> Tensor:
        """Returns uint8 [r, layers, entry] on the device.

        With `last` they are dropped, because nothing in this pass takes them again.
        """
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
