"""Computes which blocks of which Hugging Face tensors each trainer rank holds, and where in its parameters.

Pure: a layout follows from config.json, the family's rules and the parallel sizes alone. So every rank can compute
every other rank's layout without asking. `binding.py` connects a rank's layout to its real model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from verst.sync.layout.mapping import Family, HfConfig, Rule, merged_shape, sharded_view


@dataclass(frozen=True)
class Place:
    """A rank's coordinates in Megatron's process grid, in Megatron's default order tp-cp-ep-dp-pp."""

    tp: int
    cp: int
    dp: int
    pp: int
    etp: int
    ep: int
    edp: int


@dataclass(frozen=True, kw_only=True)
class ParallelSizes:
    """The parallel sizes of a trainer world, and how its layers are divided among the pipeline stages."""

    world: int = 1
    tp: int = 1
    pp: int = 1
    vpp: int = 1  # model chunks per stage
    cp: int = 1
    ep: int = 1
    etp: int = 1
    first_stage_layers: int | None = None  # --decoder-first-pipeline-num-layers
    last_stage_layers: int | None = None  # --decoder-last-pipeline-num-layers
    embedding_in_split: bool = False  # --account-for-embedding-in-pipeline-split
    loss_in_split: bool = False  # --account-for-loss-in-pipeline-split

    def __post_init__(self) -> None:
        dense, expert = self.tp * self.cp * self.pp, self.etp * self.ep * self.pp
        if self.world % dense or self.world % expert:
            raise ValueError(
                f"{self.world} ranks are not a multiple of both "
                f"tp*cp*pp = {self.tp}*{self.cp}*{self.pp} = {dense} "
                f"and etp*ep*pp = {self.etp}*{self.ep}*{self.pp} = {expert}"
            )

    @classmethod
    def from_arguments(cls, args: Any) -> ParallelSizes:
        """Reads the sizes from Megatron's validated namespace. Raises ValueError for an explicit pipeline layout."""
        if args.pipeline_model_parallel_layout is not None:
            raise ValueError(
                "pipeline-model-parallel-layout: not supported; use decoder-first-pipeline-num-layers, "
                "decoder-last-pipeline-num-layers or the account-for-…-in-pipeline-split options"
            )
        return cls(
            world=args.world_size,
            tp=args.tensor_model_parallel_size,
            pp=args.pipeline_model_parallel_size,
            vpp=args.virtual_pipeline_model_parallel_size or 1,
            cp=args.context_parallel_size,
            ep=args.expert_model_parallel_size,
            etp=args.expert_tensor_parallel_size or args.tensor_model_parallel_size,
            first_stage_layers=args.decoder_first_pipeline_num_layers,
            last_stage_layers=args.decoder_last_pipeline_num_layers,
            embedding_in_split=args.account_for_embedding_in_pipeline_split,
            loss_in_split=args.account_for_loss_in_pipeline_split,
        )

    def place(self, rank: int) -> Place:
        """The coordinates of a rank: tensor parallelism varies fastest, pipeline stages slowest."""
        per_stage = self.world // self.pp
        pp, within = divmod(rank, per_stage)
        tp, cp, dp = _unravel(within, self.tp, self.cp)
        etp, ep, edp = _unravel(within, self.etp, self.ep)
        return Place(tp, cp, dp, pp, etp, ep, edp)

    def stage_layers(self, num_layers: int) -> list[list[range]]:
        """The decoder layers of each chunk of each stage, as `[stage][chunk]`. Raises ValueError if they do not
        divide."""
        slots = num_layers + self.embedding_in_split + self.loss_in_split
        per_stage = self._slots_per_stage(slots)
        if any(count % self.vpp for count in per_stage):
            raise ValueError(f"stages of {per_stage} layers cannot be cut into {self.vpp} model chunks each")
        stages: list[list[range]] = [[] for _ in range(self.pp)]
        begin = -int(self.embedding_in_split)
        for _ in range(self.vpp):
            for stage, count in zip(stages, per_stage, strict=True):
                end = begin + count // self.vpp
                stage.append(range(max(begin, 0), min(end, num_layers)))
                begin = end
        return stages

    def _slots_per_stage(self, slots: int) -> list[int]:
        first, last = self.first_stage_layers, self.last_stage_layers
        fixed = [n for n in (first, last) if n is not None]
        middle = self.pp - len(fixed)
        left = slots - sum(fixed)
        if left < 0 or (middle and left % middle) or (not middle and left):
            raise ValueError(
                f"{slots} layers cannot be dealt to {self.pp} pipeline stages"
                + (f" with {first} in the first and {last} in the last" if fixed else " evenly")
            )
        counts = [left // middle if middle else 0] * middle
        return ([first] if first is not None else []) + counts + ([last] if last is not None else [])


def _unravel(index: int, *sizes: int) -> tuple[int, ...]:
    places = []
    for size in sizes:
        index, place = divmod(index, size)
        places.append(place)
    return (*places, index)


@dataclass(frozen=True)
class Piece:
    """One block of a Hugging Face tensor, and the view of the local parameter that holds it.

    The block is `hf.narrow(dim, start, length)`. In memory it is
    `parameter.view(view).narrow(axis, view_start, view_length)`: the same elements in the same order.
    """

    hf: str
    hf_shape: tuple[int, ...]
    dim: int
    start: int
    length: int
    view: tuple[int, ...]
    axis: int
    view_start: int
    view_length: int

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of the block, as cut from the Hugging Face tensor."""
        return (*self.hf_shape[: self.dim], self.length, *self.hf_shape[self.dim + 1 :])

    @property
    def numel(self) -> int:
        """Number of elements of the block."""
        return math.prod(self.block_shape)

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The view of the local parameter; reshaped to `block_shape` it is the block. Shares memory."""
        return parameter.detach().view(self.view).narrow(self.axis, self.view_start, self.view_length)

    def read(self, parameter: torch.Tensor) -> torch.Tensor:
        """The block. It is a copy only if the parameter interleaves it with other blocks."""
        return self.of(parameter).reshape(self.block_shape)

    def write(self, parameter: torch.Tensor, block: torch.Tensor) -> None:
        """Copies a block into the parameter, to its dtype and device."""
        target = self.of(parameter)
        target.copy_(block.reshape(target.shape))


@dataclass(frozen=True)
class LocalParameter:
    """One parameter of one rank: its possible names, its local shape and the blocks it is made of."""

    chunk: int
    names: tuple[str, ...]
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    expert: bool

    @property
    def padding(self) -> int:
        """Number of elements that belong to no Hugging Face tensor: the padded end of the vocabulary."""
        return math.prod(self.shape) - sum(piece.numel for piece in self.pieces)


class Layout:
    """The parameters and blocks of one rank. Raises ValueError if the model does not divide by the parallel sizes."""

    def __init__(self, family: Family, config: HfConfig, parallel: ParallelSizes, rank: int) -> None:
        self.family = family
        self.config = config
        self.parallel = parallel
        self.rank = rank
        self.place = parallel.place(rank)
        self._layers: dict[
            int, Sequence[Rule]
        ] = {}  # a cache of the whole model's rules: there are many, and they are the same for all ranks

    def at(self, rank: int) -> Layout:
        """The layout of another rank of the same world."""
        other = Layout(self.family, self.config, self.parallel, rank)
        other._layers = self._layers
        return other

    def _layer(self, number: int) -> Sequence[Rule]:
        if number not in self._layers:
            self._layers[number] = self.family.layer(self.config, number)
        return self._layers[number]

    @cached_property
    def parameters(self) -> list[LocalParameter]:
        """Every parameter of the rank, chunk by chunk in the order of the model."""
        parallel, place = self.parallel, self.place
        layers = parallel.stage_layers(self.family.num_layers(self.config))[place.pp]
        found: list[LocalParameter] = []
        for chunk, indices in enumerate(layers):
            first = place.pp == 0 and chunk == 0
            last = place.pp == parallel.pp - 1 and chunk == parallel.vpp - 1
            if first:
                found += self._locals(chunk, "", self.family.embedding(self.config))
            for local, i in enumerate(indices):
                found += self._locals(chunk, f"decoder.layers.{local}.", self._layer(i))
            if last:
                rules = self.family.head(self.config)
                # A tied head on the embedding's stage is the embedding itself, not another parameter.
                held = {piece.hf for p in found if p.chunk == chunk for piece in p.pieces}
                found += self._locals(chunk, "", [r for r in rules if r.parts[0].hf not in held])
        return found

    @cached_property
    def frozen(self) -> list[LocalParameter]:
        """Every buffer of the rank that keeps the checkpoint's values."""
        layers = self.parallel.stage_layers(self.family.num_layers(self.config))[self.place.pp]
        return [
            buffer
            for chunk, indices in enumerate(layers)
            for local, i in enumerate(indices)
            for buffer in self._locals(chunk, f"decoder.layers.{local}.", self.family.frozen(self.config, i))
        ]

    def _locals(self, chunk: int, prefix: str, rules: Sequence[Rule]) -> Iterator[LocalParameter]:
        experts = 1 + max((rule.expert for rule in rules if rule.expert is not None), default=-1)
        if experts % self.parallel.ep:
            raise ValueError(
                f"{experts} experts cannot be dealt evenly to {self.parallel.ep} expert parallel ranks"
            )
        for rule in rules:
            names, size, index = rule.names, self.parallel.tp, self.place.tp
            if rule.expert is not None:
                rank, local = divmod(rule.expert, experts // self.parallel.ep)
                if rank != self.place.ep:
                    continue
                names = tuple(name.format(expert=local) for name in names)
                size, index = self.parallel.etp, self.place.etp
            view = sharded_view(rule, size)
            yield LocalParameter(
                chunk=chunk,
                names=tuple(prefix + name for name in names),
                shape=merged_shape(view, rule.ndim),
                pieces=tuple(_pieces(rule, view, size, index)),
                expert=rule.expert is not None,
            )


def _pieces(rule: Rule, view: tuple[int, ...], size: int, index: int) -> Iterator[Piece]:
    """The blocks in the share of rank `index` of `size`; `view` is the view of that share."""
    for part in rule.parts:
        whole = part.shape[rule.hf_dim]
        start, length = 0, whole
        view_start, view_length = part.start, part.length
        if rule.padded:
            start = min(index * view[0], whole)
            length = min(start + view[0], whole) - start
            view_length = length
        elif rule.shard is not None:
            length = whole // size
            start = index * length
        if length:
            yield Piece(
                part.hf, part.shape, rule.hf_dim, start, length, view, rule.axis, view_start, view_length
            )
