"""How a step's samples reach the ranks that train on them.

One rank of each data-parallel replica (tensor, pipeline and context rank 0) fetches the replica's groups
from the store shards; the replica's other ranks get them by broadcast through torch.distributed, but for their
routing, the bulk of them, of which each rank gets its part alone (`routing_share.py`). The payload stays in host
memory: the ranks collate their micro-batches from it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from verst.runtime.actors import Member
from verst.runtime.actors.codec import Buffer, decode, encode
from verst.runtime.messages.apis import StoreApi
from verst.runtime.messages.sample import Sample
from verst.runtime.messages.step_plan import SampleRef, StepPlan
from verst.runtime.trainer.parallel import Parallel
from verst.runtime.trainer.share.routing import RoutingSpreader, Share
from verst.runtime.trainer.share.selection import SelectionShare, SelectionSpreader

Samples = dict[tuple[int, int], Sample]
Routing = list[torch.Tensor]  # this rank's entries of each micro-batch
Selected = list[torch.Tensor]  # the same of sparse attention's choices

_FETCH_S = 300.0


@dataclass(frozen=True)
class Replayed:
    """What a rank replays of the engine's choices."""

    routing: Share
    moe_layers: int  # of the whole model
    selection: SelectionShare | None  # of a model with sparse attention


class SampleFetcher:
    """Fetches and spreads. Making one is collective over the world."""

    def __init__(self, parallel: Parallel, member: Member, replayed: Replayed | None) -> None:
        self._parallel = parallel
        self._member = member
        self._source, self._group = replica_group(parallel)
        self._routing, self._selection = spreaders(parallel, self._source, self._group, replayed)

    def fetch(self, plan: StepPlan, replays: bool) -> tuple[Samples, Routing | None, Selected | None, float]:
        """This rank's samples by (group, index), where the step `replays` its part of their routing and of what their
        sparse attention chose, and the seconds it took. Collective over the replica."""
        began = time.monotonic()
        buffers: list[Buffer] = []
        found: list[Sample] = []
        if self._parallel.rank == self._source:
            refs = [ref for micro in plan.microbatches[self._parallel.dp_rank] for ref in micro.samples]
            found = self._member.call_blocking(self._from_stores(refs), timeout=_FETCH_S)
            buffers = encode([without_routing(s) for s in found])
        samples = {(s.group, s.index): s for s in decode(list[Sample], self._broadcast(buffers))}
        routing = selected = None
        if replays:
            microbatches = plan.microbatches[self._parallel.dp_rank]
            whole = {(s.group, s.index): s for s in found} or samples
            routing = self._routing.spread(microbatches, whole) if self._routing else None
            selected = self._selection.spread(microbatches, whole) if self._selection else None
        return samples, routing, selected, time.monotonic() - began

    async def _from_stores(self, refs: list[SampleRef]) -> list[Sample]:
        wanted: dict[int, set[int]] = {}
        for ref in refs:
            wanted.setdefault(ref.shard, set()).add(ref.group)
        stores = {s: self._member.handle(StoreApi, "store", s, timeout=_FETCH_S) for s in wanted}
        answers = await asyncio.gather(*(stores[s].fetch(sorted(ids)) for s, ids in wanted.items()))
        found = {(s.group, s.index): s for groups in answers for group in groups for s in group.samples}
        return [found[ref.group, ref.index] for ref in refs]

    def _broadcast(self, buffers: list[Buffer]) -> list[Buffer]:
        """The source's buffers on every rank of the replica."""
        if dist.get_world_size(self._group) == 1:
            return buffers
        count = int(self._broadcast_int64(np.array([len(buffers)], np.int64), 1)[0])
        own_lengths = np.array([memoryview(b).nbytes for b in buffers], np.int64)
        lengths = self._broadcast_int64(own_lengths, count)
        payload = torch.empty(int(lengths.sum()), dtype=torch.uint8)
        if buffers:
            payload.numpy()[:] = np.frombuffer(b"".join(memoryview(b).cast("B") for b in buffers), np.uint8)
        dist.broadcast(payload, self._source, group=self._group)
        raw = memoryview(payload.numpy())
        ends = np.cumsum(lengths)
        return [raw[end - length : end] for end, length in zip(ends, lengths, strict=True)]

    def _broadcast_int64(self, values: np.ndarray, count: int) -> np.ndarray:
        tensor = torch.zeros(count, dtype=torch.int64)
        if self._parallel.rank == self._source:
            tensor.copy_(torch.from_numpy(values))
        dist.broadcast(tensor, self._source, group=self._group)
        return tensor.numpy()


def without_routing(sample: Sample) -> Sample:
    """The sample with no entries, but of the same shape, so that every rank can check it."""
    routing = None if sample.routing is None else sample.routing[:0]
    return msgspec.structs.replace(sample, routing=routing, selected=None)


def spreaders(
    parallel: Parallel, source: int, group: dist.ProcessGroup, replayed: Replayed | None
) -> tuple[RoutingSpreader | None, SelectionSpreader | None]:
    """What brings each rank of a replica its part of the engine's routing, and of what its sparse attention chose;
    None where that is not replayed. Collective over the group."""
    if replayed is None:
        return None, None
    share = replayed.routing
    routing = RoutingSpreader(parallel, source, group, share, replayed.moe_layers, share.entry)
    if replayed.selection is None:
        return routing, None
    return routing, SelectionSpreader(parallel, source, group, replayed.selection)


def replica_group(parallel: Parallel) -> tuple[int, dist.ProcessGroup]:
    """The source rank and the host-side group of this rank's data-parallel replica."""
    mine = (parallel.dp_rank, parallel.is_model_parallel_source)
    places: list[tuple[int, bool]] = [mine] * parallel.world_size
    dist.all_gather_object(places, mine)
    own: tuple[int, dist.ProcessGroup] | None = None
    for replica in range(parallel.dp_size):
        ranks = [rank for rank, (dp_rank, _) in enumerate(places) if dp_rank == replica]
        group = dist.new_group(
            ranks, timeout=parallel.timeout, backend="gloo"
        )  # every rank makes every group
        if replica == parallel.dp_rank:
            own = next(rank for rank in ranks if places[rank][1]), group
    assert own is not None
    return own
