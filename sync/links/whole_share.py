"""Assembles whole tensors, each on one of the trainer's ranks, so that all ranks can convert or write at once.

A rank's blocks of a tensor are not enough for either: formats quantise by blocks of their own, some with one number
for the whole tensor, and files hold whole tensors. So each tensor (or group of tensors that belong together) has an
owner among the ranks that hold some of it, chosen so that all ranks own about the same amount. The other ranks send
the owner their blocks, bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Layout, Piece
from verst.sync.links.gather import BucketPlan, assemble, cut

Step = dict[int, BucketPlan]  # for each owner the bucket that it assembles, all at the same time


@dataclass(frozen=True)
class _Held:
    """A block of a tensor and the ranks that hold it."""

    piece: Piece
    ranks: list[int]


def deal(
    layout: Layout,
    groups: Iterable[Sequence[str]],
    itemsize: int,
    bucket_bytes: int,
    least_bytes: int = 0,
) -> list[Step]:
    """Decides which rank owns which tensors, and who sends the owner which blocks. Pure, and the same on every rank.

    `groups` are lists of tensor names; one owner assembles all tensors of a group in one step. An owner assembles at
    most `bucket_bytes` in a step, unless a single group is larger. A rank that has begun to own tensors is preferred
    until it owns `least_bytes`; only then does another rank begin.
    """

    def order(rank: int) -> tuple[bool, int, int]:
        begun = 0 < owned[rank] < least_bytes
        return not begun, owned[rank], rank

    groups = [list(names) for names in groups]
    held = _held(layout, {name for names in groups for name in names})
    owned = [0] * layout.parallel.world
    room: dict[int, tuple[int, int]] = {}  # for each owner, its last step and the free bytes in it
    steps: list[Step] = []
    for names in groups:
        blocks = [block for name in names for block in held[name]]
        size = sum(block.piece.numel for block in blocks) * itemsize
        owner = min({rank for block in blocks for rank in block.ranks}, key=order)
        owned[owner] += size
        step, free = room.get(owner, (-1, 0))
        if size > free:
            step, free = step + 1, bucket_bytes
        room[owner] = step, free - size
        if step == len(steps):
            steps.append({})
        bucket = steps[step].setdefault(owner, BucketPlan())
        for name in names:
            bucket.names.append(name)
            bucket.shapes.append(held[name][0].piece.hf_shape)
            for block in held[name]:
                # The nearest rank: the owner itself, or a rank of its replica, usually on the same node.
                sender = min(block.ranks, key=lambda rank: abs(rank - owner))
                bucket.shares[sender].append(block.piece)
    return steps


def _held(layout: Layout, names: Container[str]) -> dict[str, list[_Held]]:
    """The blocks of each of the tensors `names`, with the ranks that hold them."""
    found: dict[str, dict[int, _Held]] = {}
    pieces: dict[
        tuple[int, ...], list[Piece]
    ] = {}  # by coordinates: ranks with the same hold the same blocks
    for rank in range(layout.parallel.world):
        at = layout.parallel.place(rank)
        place = (at.tp, at.pp, at.etp, at.ep)
        if place not in pieces:
            pieces[place] = [
                piece for local in layout.at(rank).parameters for piece in local.pieces if piece.hf in names
            ]
        for piece in pieces[place]:
            found.setdefault(piece.hf, {}).setdefault(piece.start, _Held(piece, [])).ranks.append(rank)
    return {name: list(blocks.values()) for name, blocks in found.items()}


class WholeShare:
    """One rank's share of the whole tensors. Construction and `buckets` are collective over `group`, whose ranks are
    the trainer's."""

    def __init__(
        self,
        bound: Bound,
        groups: Iterable[Sequence[str]],
        bucket_bytes: int,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
        least_bytes: int = 0,
    ) -> None:
        """`groups` and `least_bytes` are as in `deal`; `dtype` is the whole tensors' dtype."""
        self.rank = bound.layout.rank
        self.world = bound.layout.parallel.world
        self.dtype = dtype
        self.group = group
        self._steps = deal(bound.layout, groups, dtype.itemsize, bucket_bytes, least_bytes)
        self._held = {(piece.hf, piece.start): parameter for piece, parameter in bound.pieces()}
        self.device = next(iter(self._held.values())).device
        if self.world > 1:
            # NCCL needs every rank in a group's first operation; later operations involve only some ranks.
            dist.barrier(group)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors that this rank owns, by name."""
        mine = [step[self.rank] for step in self._steps if self.rank in step]
        return {name: shape for b in mine for name, shape in zip(b.names, b.shapes, strict=True)}

    def buckets(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """Yields the names and whole tensors that this rank owns, bucket by bucket, with the current weights.

        Every rank must iterate to the end, because others wait for its blocks.
        """
        for step in self._steps:
            blocks = self._exchange(step)
            if self.rank in step:
                yield step[self.rank].names, assemble(step[self.rank], blocks, self.dtype, self.device)

    def _exchange(self, step: Step) -> dict[int, list[torch.Tensor]]:
        """Sends this rank's blocks to the step's other owners; returns the blocks of its own bucket, by rank."""
        operations, coming = [], {}
        for owner, bucket in sorted(step.items()):
            if owner != self.rank and (pieces := bucket.shares.get(self.rank)):
                message = torch.cat([self._read(piece).flatten() for piece in pieces])
                operations.append(dist.P2POp(dist.isend, message, owner, self.group))
        mine = step.get(self.rank, BucketPlan())
        for sender, pieces in sorted(mine.shares.items()):
            if sender != self.rank:
                size = sum(piece.numel for piece in pieces)
                coming[sender] = torch.empty(size, dtype=self.dtype, device=self.device)
                operations.append(dist.P2POp(dist.irecv, coming[sender], sender, self.group))
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        own = {self.rank: [self._read(piece) for piece in mine.shares.get(self.rank, [])]}
        return own | cut(mine, coming)

    def _read(self, piece: Piece) -> torch.Tensor:
        return piece.read(self._held[piece.hf, piece.start]).to(self.dtype)
