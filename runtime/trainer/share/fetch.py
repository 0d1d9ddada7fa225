"""Fetches a step's samples from the store shards and passes them on to the ranks that train on them.

One rank of each data-parallel replica (tensor, pipeline and context rank 0) fetches the replica's groups. It
broadcasts them to the replica's other ranks through torch.distributed, without their routing, which is most
of their bytes. Of the routing each rank gets only its own part (`routing.py`). The samples stay in host
memory, where the ranks collate their micro-batches.
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
Routing = list[torch.Tensor]  # this rank's routing entries of each micro-batch
Selected = list[torch.Tensor]  # this rank's bytes of sparse attention's choices, of each micro-batch
Fetched = tuple[Samples, Routing | None, Selected | None, float]  # the last: seconds that it took

_FETCH_S = 300.0


@dataclass(frozen=True)
class Replayed:
    """The part of the engine's choices that one rank replays."""

    routing: Share
    moe_layers: int  # of the whole model
    selection: SelectionShare | None  # None for a model without sparse attention


class SampleFetcher:
    """Fetches samples and spreads them within the replica. Creating one is collective over the world."""

    def __init__(self, parallel: Parallel, member: Member, replayed: Replayed | None) -> None:
        self._parallel = parallel
        self._member = member
        self._source, self._group = replica_group(parallel)
        self._routing, self._selection = spreaders(parallel, self._source, self._group, replayed)

    def fetch(self, plan: StepPlan, replays: bool) -> Fetched:
        """Fetches the plan's samples for this rank. Collective over the replica.

        Returns the samples by (group, index), this rank's part of their routing and of their sparse
        attention's choices (each None unless the step `replays` it), and the seconds that this took.
        """
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
        """Returns the source's buffers on every rank of the replica."""
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
    """The sample without routing entries and choices.

    Its routing keeps the shape of an entry, so that every rank can check it.
    """
    routing = None if sample.routing is None else sample.routing[:0]
    return msgspec.structs.replace(sample, routing=routing, selected=None)


def spreaders(
    parallel: Parallel, source: int, group: dist.ProcessGroup, replayed: Replayed | None
) -> tuple[RoutingSpreader | None, SelectionSpreader | None]:
    """Creates the spreaders of the engine's routing and of its sparse attention's choices.

    Each is None where that is not replayed. Collective over the group.
    """
    if replayed is None:
        return None, None
    share = replayed.routing
    routing = RoutingSpreader(parallel, source, group, share, replayed.moe_layers, share.entry)
    if replayed.selection is None:
        return routing, None
    return routing, SelectionSpreader(parallel, source, group, replayed.selection)


def replica_group(parallel: Parallel) -> tuple[int, dist.ProcessGroup]:
    """Returns the source rank and the gloo group of this rank's data-parallel replica.

    Collective over the world.
    """
    mine = (parallel.dp_rank, parallel.is_model_parallel_source)
    places: list[tuple[int, bool]] = [mine] * parallel.world_size
    dist.all_gather_object(places, mine)
    own: tuple[int, dist.ProcessGroup] | None = None
    for replica in range(parallel.dp_size):
        ranks = [rank for rank, (dp_rank, _) in enumerate(places) if dp_rank == replica]
        # Every rank must create every group.
        group = dist.new_group(ranks, timeout=parallel.timeout, backend="gloo")
        if replica == parallel.dp_rank:
            own = next(rank for rank in ranks if places[rank][1]), group
    assert own is not None
    return own
