"""Whole tensors, each on one of the trainer's ranks: what is converted or written can be so by all of them at once.

Formats quantise by blocks, and some by a number over whole tensors, files hold whole tensors: what a rank holds of one
is of little use alone. Each tensor (or all that belong together) has an owner among the ranks that hold some of it,
chosen so that all own alike; the others send it theirs, bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from verst.sync.layout.binding import Bound
from verst.sync.layout.layout import Layout, Piece
from verst.sync.links.gather import BucketPlan, assemble, cut

Step = dict[int, BucketPlan]  # by owner, what it assembles at the same time as the others


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
    """Who owns which of the tensors, and who sends it which blocks: the same on every rank, a pure function.

    `groups` are names of tensors, those of one group are assembled in one step by one owner. An owner has no more than
    `bucket_bytes` in a step, but for a group that is larger. One that holds the tensors owns `least_bytes` before
    another begins to.
    """

    def order(rank: int) -> tuple[bool, int, int]:
        begun = 0 < owned[rank] < least_bytes
        return not begun, owned[rank], rank

    groups = [list(names) for names in groups]
    held = _held(layout, {name for names in groups for name in names})
    owned = [0] * layout.parallel.world
    room: dict[int, tuple[int, int]] = {}  # by owner, its last step and the bytes that are free in it
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
                # The nearest: itself, or its own replica's ranks, on its node as a rule.
                sender = min(block.ranks, key=lambda rank: abs(rank - owner))
                bucket.shares[sender].append(block.piece)
    return steps


def _held(layout: Layout, names: Container[str]) -> dict[str, list[_Held]]:
    """By name, the blocks of each of these tensors."""
    found: dict[str, dict[int, _Held]] = {}
    pieces: dict[tuple[int, ...], list[Piece]] = {}  # ranks at the same place hold the same
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
    """One rank's part. Construction and `buckets` are collective over `group`, whose ranks are the trainer's."""

    def __init__(
        self,
        bound: Bound,
        groups: Iterable[Sequence[str]],
        bucket_bytes: int,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
        least_bytes: int = 0,
    ) -> None:
        """`groups` and `least_bytes` as for `deal`; `dtype` is what whole tensors have."""
        self.rank = bound.layout.rank
        self.world = bound.layout.parallel.world
        self.dtype = dtype
        self.group = group
        self._steps = deal(bound.layout, groups, dtype.itemsize, bucket_bytes, least_bytes)
        self._held = {(piece.hf, piece.start): parameter for piece, parameter in bound.pieces()}
        self.device = next(iter(self._held.values())).device
        if self.world > 1:
            # NCCL wants every rank in a group's first operation; later ones involve some only.
            dist.barrier(group)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors that this rank owns."""
        mine = [step[self.rank] for step in self._steps if self.rank in step]
        return {name: shape for b in mine for name, shape in zip(b.names, b.shapes, strict=True)}

    def buckets(self) -> Iterator[tuple[list[str], list[torch.Tensor]]]:
        """Yields names and whole tensors of this rank, bucket by bucket, as the weights are now.

        Every rank must run it to the end: others wait for its blocks.
        """
        for step in self._steps:
            blocks = self._exchange(step)
            if self.rank in step:
                yield step[self.rank].names, assemble(step[self.rank], blocks, self.dtype, self.device)

    def _exchange(self, step: Step) -> dict[int, list[torch.Tensor]]:
        """Sends what others own in this step, and returns the blocks, by rank, of what this one does."""
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
