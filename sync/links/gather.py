"""Gathers whole Hugging Face tensors on trainer rank 0, bucket by bucket, from the ranks that hold their blocks.

Every rank computes the same plan from the layouts alone. Each block has one owner: the lowest rank that holds it. A
bucket is a run of whole tensors in the model's order. For each bucket, each owner sends one message to rank 0, which
cuts it into blocks again. Works over gloo and NCCL.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Layout, ParallelSizes, Piece

SOURCE = 0  # the trainer rank that assembles whole tensors


@dataclass
class BucketPlan:
    """One bucket: its tensors, and for each rank the blocks that it sends, in message order."""

    names: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    shares: dict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))

    def numel(self) -> int:
        """Number of elements of all its tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)


def plan_buckets(layout: Layout, bucket_bytes: int, itemsize: int) -> list[BucketPlan]:
    """The buckets of a whole model, the same on every rank.

    Tensors that belong together (`Family.together`) share a bucket; if they are larger than `bucket_bytes`, they get
    a bucket of their own.
    """
    owned: dict[str, list[tuple[int, Piece]]] = defaultdict(list)
    taken: set[tuple[str, int]] = set()
    sizes = layout.parallel
    for rank in range(sizes.world):
        place = sizes.place(rank)
        if (place.cp or place.dp) and place.edp:
            continue  # its dense and its expert parameters are both replicas of lower ranks'
        for local in layout.at(rank).parameters:
            for piece in local.pieces:
                if (piece.hf, piece.start) not in taken:
                    taken.add((piece.hf, piece.start))
                    owned[piece.hf].append((rank, piece))
    buckets: list[BucketPlan] = []
    room = 0
    shapes = whole_tensors(layout)
    for _, group in itertools.groupby(shapes, layout.family.together):
        names = list(group)
        size = sum(torch.Size(shapes[name]).numel() for name in names) * itemsize
        if size > room:
            buckets.append(BucketPlan())
            room = bucket_bytes
        room -= size
        for name in names:
            buckets[-1].names.append(name)
            buckets[-1].shapes.append(shapes[name])
            for rank, piece in owned[name]:
                buckets[-1].shares[rank].append(piece)
    return buckets


def whole_tensors(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The shapes of all Hugging Face tensors of the model by name, in the model's order."""
    whole = Layout(layout.family, layout.config, ParallelSizes(), 0)
    return {piece.hf: piece.hf_shape for local in whole.parameters for piece in local.pieces}


def frozen_names(layout: Layout) -> list[str]:
    """The Hugging Face tensors of the whole model that keep the checkpoint's values."""
    whole = Layout(layout.family, layout.config, ParallelSizes(), 0)
    return [piece.hf for buffer in whole.frozen for piece in buffer.pieces]


class Gather:
    """Gathers a model's weights on rank 0. The plan is made once and used for every pass.

    Construction and `buckets` are collective over `group`, whose ranks are the trainer's ranks.
    """

    def __init__(
        self,
        bound: Bound,
        bucket_bytes: int,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.dtype = dtype
        self.rank = bound.layout.rank
        self.plan = plan_buckets(bound.layout, bucket_bytes, dtype.itemsize)
        self.group = group
        self._held = {(piece.hf, piece.start): parameter for piece, parameter in bound.pieces()}
        self.device = next(iter(self._held.values())).device
        if bound.layout.parallel.world > 1:
            # NCCL needs every rank in a group's first operation; later batches involve only some ranks.
            dist.barrier(group)

    def buckets(self) -> Iterator[tuple[list[str], list[torch.Tensor] | None]]:
        """Yields each bucket's names, with its whole tensors on rank 0 and None elsewhere.

        Every rank must iterate to the end: in each bucket rank 0 waits for the others, and they wait for it.
        """
        for bucket in self.plan:
            if self.rank == SOURCE:
                yield bucket.names, self._receive(bucket)
            else:
                self._send(bucket)
                yield bucket.names, None

    def _read(self, piece: Piece) -> torch.Tensor:
        return piece.read(self._held[piece.hf, piece.start]).to(self.dtype)

    def _send(self, bucket: BucketPlan) -> None:
        if pieces := bucket.shares.get(self.rank):
            message = torch.cat([self._read(piece).flatten() for piece in pieces])
            self._exchange([dist.P2POp(dist.isend, message, SOURCE, self.group)])

    def _receive(self, bucket: BucketPlan) -> list[torch.Tensor]:
        messages = {
            rank: torch.empty(sum(p.numel for p in pieces), dtype=self.dtype, device=self.device)
            for rank, pieces in bucket.shares.items()
            if rank != SOURCE
        }
        self._exchange([dist.P2POp(dist.irecv, m, rank, self.group) for rank, m in messages.items()])
        own = {SOURCE: [self._read(piece) for piece in bucket.shares.get(SOURCE, [])]}
        return assemble(bucket, own | cut(bucket, messages), self.dtype, self.device)

    def _exchange(self, operations: list[dist.P2POp]) -> None:
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()


def cut(bucket: BucketPlan, messages: dict[int, torch.Tensor]) -> dict[int, list[torch.Tensor]]:
    """Cuts each rank's message into its blocks."""
    return {
        rank: list(message.split([piece.numel for piece in bucket.shares[rank]]))
        for rank, message in messages.items()
    }


def assemble(
    bucket: BucketPlan,
    blocks: dict[int, list[torch.Tensor]],
    dtype: torch.dtype,
    device: torch.device,
) -> list[torch.Tensor]:
    """Puts the bucket's whole tensors together from each rank's `blocks`, which are in the order of its share."""
    whole = {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, shape in zip(bucket.names, bucket.shapes, strict=True)
    }
    for rank, pieces in bucket.shares.items():
        for piece, block in zip(pieces, blocks[rank], strict=True):
            target = whole[piece.hf].narrow(piece.dim, piece.start, piece.length)
            target.copy_(block.view(piece.block_shape))
    return list(whole.values())
