"""A trainer's weights in an engine's format, each tensor on one rank: what blocks for such an engine are cut from.

Formats quantise by blocks, and some by a number over whole tensors, so what a rank holds of a tensor can seldom be
converted alone. Each tensor (or all that share a number) has an owner among the ranks that hold some of it, chosen so
that all own alike; the others send it theirs, and it converts the whole: bit for bit what `verst convert` makes. What
is not quantised stays where it is.

Takes memory on each rank: its share of the engine's quantised tensors, and while it converts a bucket of whole ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from verst.sync.binding import Bound
from verst.sync.blocks import Blocks, BlockWriter, held_blocks, joined
from verst.sync.engine_format import EngineFormat
from verst.sync.gather import BucketPlan, assemble, cut
from verst.sync.layout import Layout, Piece

Step = dict[int, BucketPlan]  # by owner, what it converts at the same time as the others


@dataclass(frozen=True)
class _Held:
    """A block of a tensor and the ranks that hold it."""

    piece: Piece
    ranks: list[int]


def deal(layout: Layout, format: EngineFormat, itemsize: int, bucket_bytes: int) -> list[Step]:
    """Who converts what, and who sends it which blocks: the same on every rank, a pure function of the layouts.

    An owner has no more than `bucket_bytes` of whole tensors in a step, but for a group that is larger.
    """
    held = _held(layout, format)
    owned, sent = [0] * layout.parallel.world, [0] * layout.parallel.world
    room: dict[int, tuple[int, int]] = {}  # by owner, its last step and the bytes that are free in it
    steps: list[Step] = []
    for names in _groups(held, format):
        blocks = [block for name in names for block in held[name]]
        size = sum(block.piece.numel for block in blocks) * itemsize
        owner = min({rank for block in blocks for rank in block.ranks}, key=lambda r: (owned[r], r))
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
                sender = owner if owner in block.ranks else min(block.ranks, key=lambda r: (sent[r], r))
                sent[sender] += block.piece.numel * (sender != owner)
                bucket.shares[sender].append(block.piece)
    return steps


def _held(layout: Layout, format: EngineFormat) -> dict[str, list[_Held]]:
    """By name, the blocks of each tensor that is converted, in the order of the model."""
    found: dict[str, dict[int, _Held]] = {}
    pieces: dict[tuple[int, ...], list[Piece]] = {}  # ranks at the same place hold the same
    for rank in range(layout.parallel.world):
        at = layout.parallel.place(rank)
        place = (at.tp, at.pp, at.etp, at.ep)
        if place not in pieces:
            pieces[place] = [
                piece
                for local in layout.at(rank).parameters
                for piece in local.pieces
                if piece.hf in format.taken
            ]
        for piece in pieces[place]:
            found.setdefault(piece.hf, {}).setdefault(piece.start, _Held(piece, [])).ranks.append(rank)
    return {name: list(blocks.values()) for name, blocks in found.items()}


def _groups(held: dict[str, list[_Held]], format: EngineFormat) -> Iterator[list[str]]:
    """Names that are converted together."""
    group_of = {name: group for group, names in format.groups.items() for name in names}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in held:
        groups[group_of[name]].append(name)
    yield from groups.values()


class ConvertedShare:
    """One rank's part. Construction and `convert` are collective over `group`, whose ranks are the trainer's."""

    def __init__(
        self,
        bound: Bound,
        format: EngineFormat,
        bucket_bytes: int,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """`dtype` is the model's, which whole tensors have before they are converted.

        Raises ValueError when a tensor cannot be had in the format.
        """
        self._rank = bound.layout.rank
        self._format = format
        self._dtype = dtype
        self._group = group
        self._steps = deal(bound.layout, format, dtype.itemsize, bucket_bytes)
        self._held = {(piece.hf, piece.start): parameter for piece, parameter in bound.pieces()}
        self._device = next(iter(self._held.values())).device
        kept, parameters = held_blocks(bound.parameters, but=format.taken)
        self._made: dict[str, torch.Tensor] = {}
        made, memory = self._make_room()
        self.blocks: Blocks = joined(kept, made)
        self.parameters: list[torch.Tensor] = parameters + memory
        if bound.layout.parallel.world > 1:
            # NCCL wants every rank in a group's first operation; later ones involve some only.
            dist.barrier(group)

    @property
    def nbytes(self) -> int:
        """Of memory for what is converted."""
        return sum(tensor.nbytes for tensor in self._made.values())

    def convert(self) -> None:
        """Fills `parameters` with what the trainer's weights are in the engine's format now.

        Raises ValueError for an infinity or a NaN, naming the tensor.
        """
        for step in self._steps:
            blocks = self._exchange(step)
            mine = step.get(self._rank)
            if mine is None:
                continue
            whole = assemble(mine, blocks, self._dtype, self._device)
            names, tensors = self._format.start().feed(mine.names, whole)
            for name, tensor in zip(names, tensors, strict=True):
                self._made[name].copy_(tensor)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # links send from threads with streams of their own

    def _make_room(self) -> tuple[Blocks, list[torch.Tensor]]:
        """The table of the tensors that this rank makes, and their memory: one tensor for each dtype."""
        derived = [
            made
            for step in self._steps
            if self._rank in step
            for name, shape in zip(step[self._rank].names, step[self._rank].shapes, strict=True)
            for made in self._format.format.derived(name, shape)
        ]
        sizes: dict[torch.dtype, int] = defaultdict(int)
        for made in derived:
            sizes[made.dtype] += torch.Size(made.shape).numel()
        memory = {dtype: torch.zeros(n, dtype=dtype, device=self._device) for dtype, n in sizes.items()}
        number = {dtype: i for i, dtype in enumerate(memory)}
        writer, used = BlockWriter(), dict.fromkeys(memory, 0)
        for made in derived:
            length = torch.Size(made.shape).numel()
            view = memory[made.dtype].narrow(0, used[made.dtype], length).view(made.shape)
            used[made.dtype] += length
            self._made[made.name] = view
            writer.add(made.name, made.shape, (0,) * len(made.shape), number[made.dtype], view)
        return writer.blocks(list(memory)), list(memory.values())

    def _exchange(self, step: Step) -> dict[int, list[torch.Tensor]]:
        """Sends what others convert in this step, and returns the blocks, by rank, of what this one does."""
        operations, coming = [], {}
        for owner, bucket in sorted(step.items()):
            if owner != self._rank and (pieces := bucket.shares.get(self._rank)):
                message = torch.cat([self._read(piece).flatten() for piece in pieces])
                operations.append(dist.P2POp(dist.isend, message, owner, self._group))
        mine = step.get(self._rank, BucketPlan())
        for sender, pieces in sorted(mine.shares.items()):
            if sender != self._rank:
                size = sum(piece.numel for piece in pieces)
                coming[sender] = torch.empty(size, dtype=self._dtype, device=self._device)
                operations.append(dist.P2POp(dist.irecv, coming[sender], sender, self._group))
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        own = {self._rank: [self._read(piece) for piece in mine.shares.get(self._rank, [])]}
        return own | cut(mine, coming)

    def _read(self, piece: Piece) -> torch.Tensor:
        return piece.read(self._held[piece.hf, piece.start]).to(self._dtype)
