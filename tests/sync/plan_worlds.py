"""A trainer and an engine as tables of blocks with real memory: the element ids of a tiny model as weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tests.sync.layout.test_layout import EXPERTS, FAMILIES, config_of, hf_tensors, layout_of
from verst.sync.layout.blocks import Blocks, held_blocks
from verst.sync.layout.layout import LocalParameter, ParallelSizes

Sizes = dict[str, int]
Spec = tuple[str, Sizes, Sizes]  # family, sizes of the trainer and of the engine (`engine_layout`)


@cache
def model(family: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config = config_of(family)
    return config, {name: t.to(torch.int32) for name, t in hf_tensors(config).items()}


@dataclass
class Memory:
    """One rank's parameters, their table, and how often each element was written."""

    blocks: Blocks
    parameters: list[torch.Tensor]
    expected: list[torch.Tensor]  # element ids, -1 where nothing must be written (vocabulary padding)
    writes: list[torch.Tensor] = field(default_factory=list)

    def views(self, slot: torch.Tensor, moves: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """By move, its place in the slot and in the rank's memory."""
        for move in moves:
            parameter = self.parameters[move["parameter"]]
            shape = move["length"].tolist()
            place = parameter.as_strided(shape, move["stride"].tolist(), int(move["offset"]))
            part = slot[int(move["position"]) : int(move["position"] + move["nbytes"])]
            yield part.view(parameter.dtype).view(shape), place

    def written(self, place: torch.Tensor) -> None:
        number = next(
            i
            for i, p in enumerate(self.parameters)
            if p.untyped_storage().data_ptr() == place.untyped_storage().data_ptr()
        )
        self.writes[number].as_strided(place.shape, place.stride(), place.storage_offset()).add_(1)

    def assert_complete(self) -> None:
        for parameter, expected, writes in zip(self.parameters, self.expected, self.writes, strict=True):
            assert torch.equal(parameter, expected)
            assert torch.equal(writes, (expected >= 0).to(writes.dtype))


@dataclass
class World:
    trainer: list[Memory]
    engine: list[Memory]
    replica_sets: list[list[int]]

    @classmethod
    def of(cls, family: str, trainer: dict[str, int], engine: dict[str, int]) -> World:
        """Parallel sizes of both; `dp` of the trainer are replicas of the whole."""
        trainer = dict(trainer)
        dp = trainer.pop("dp", 1)
        tp, cp, pp, ep = (trainer.get(k, 1) for k in ("tp", "cp", "pp", "ep"))
        etp = trainer.get("etp", tp if ep == 1 else 1)
        dense, expert = tp * cp * pp, ep * etp * pp
        world = dp * max(dense, expert)
        sizes = ParallelSizes(world=world, **trainer | {"etp": etp})
        config, _ = model(family)
        sets: dict[tuple, list[int]] = {}
        for rank in range(world):
            place = sizes.place(rank)
            sets.setdefault((place.tp, place.pp, place.etp, place.ep), []).append(rank)
        return cls(
            [
                _memory(family, layout_of(config, sizes, rank).parameters, filled=True)
                for rank in range(world)
            ],
            [_memory(family, parameters, filled=False) for parameters in engine_layout(family, engine)],
            list(sets.values()),
        )

    def engine_bytes_once(self) -> int:
        """Bytes of the engine's different boxes."""
        boxes = {}
        for memory in self.engine:
            for row in memory.blocks.rows:
                name = memory.blocks.names[row["tensor"]]
                boxes[name, row["start"].tobytes(), row["length"].tobytes()] = int(row["length"].prod()) * 4
        return sum(boxes.values())


def engine_layout(family: str, sizes: Sizes) -> list[list[LocalParameter]]:
    """By rank, what an engine of `tp` (or `ep`) ranks holds, cut as SGLang cuts it.

    With `dp` groups, data-parallel attention (--enable-dp-attention): attention and embedding are cut within a
    group, and the head too where `dp_lm_head`; dense layers by `dense` (--moe-dense-tp-size, 1 or the ranks);
    experts always over all ranks, in `ep` parts.
    """
    ranks = max(sizes.get("tp", 1), sizes.get("ep", 1))
    ep = sizes.get("ep", 1)
    group = sizes.get("tp", 1) // sizes.get("dp", 1)
    cut = {
        "self_attn": group,
        "embed_tokens": group,
        "lm_head": group if sizes.get("dp_lm_head") else sizes.get("tp", 1),
        "mlp": sizes.get("dense", sizes.get("tp", 1)),
    }
    config, _ = model(family)
    held = []
    for rank in range(ranks):
        by_tp = {
            tp: layout_of(config, ParallelSizes(world=ranks, tp=tp, ep=ep, etp=ranks // ep), rank).parameters
            for tp in sorted({*cut.values()})
        }
        held.append([_cut_as_wanted(same, cut) for same in _rows(by_tp)])
    return held


def _rows(by_tp: dict[int, list[LocalParameter]]) -> Iterator[dict[int, LocalParameter]]:
    """Parameter by parameter, how it is cut by each size."""
    for same in zip(*by_tp.values(), strict=True):
        yield dict(zip(by_tp, same, strict=True))


def _cut_as_wanted(by_tp: dict[int, LocalParameter], cut: Sizes) -> LocalParameter:
    some = next(iter(by_tp.values()))
    if some.expert:
        return some
    # A rank may have nothing but padding of the vocabulary, cut one way, and rows of it, cut another.
    where = next((piece.hf.split(".") for local in by_tp.values() for piece in local.pieces), [])
    return next((by_tp[tp] for kind, tp in cut.items() if kind in where), some)


def _memory(family: str, layout: list[LocalParameter], *, filled: bool) -> Memory:
    _, tensors = model(family)
    pairs, expected = [], []
    for local in layout:
        values = torch.full(local.shape, -1, dtype=torch.int32)
        for piece in local.pieces:
            piece.write(values, tensors[piece.hf].narrow(piece.dim, piece.start, piece.length))
        # Parameters live somewhere inside a larger buffer, as Megatron's do.
        buffer = torch.full((values.numel() + 5,), -1, dtype=torch.int32)
        parameter = buffer[5:].view(local.shape)
        if filled:
            parameter.copy_(values)
        pairs.append((local, parameter))
        expected.append(values)
    blocks, parameters = held_blocks(pairs)
    if filled:
        return Memory(blocks, parameters, expected)
    writes = [torch.zeros(5 + p.numel(), dtype=torch.int32)[5:].view(p.shape) for p in parameters]
    return Memory(blocks, parameters, expected, writes)


@st.composite
def engines(draw: st.DrawFn, family: str) -> Sizes:
    sizes = {"tp": draw(st.sampled_from([1, 2, 4]))}
    if family in EXPERTS:
        sizes["ep"] = draw(st.sampled_from([n for n in (1, 2, 4) if n <= sizes["tp"]]))
    if sizes["tp"] > 1 and draw(st.booleans()):
        sizes["dp"] = draw(st.sampled_from([n for n in (2, 4) if n <= sizes["tp"]]))
        sizes["dp_lm_head"] = draw(st.sampled_from([0, 1]))
        sizes["dense"] = draw(st.sampled_from([1, sizes["tp"]]))
    return sizes


@st.composite
def trainers(draw: st.DrawFn, family: str, replicas: bool = False) -> Sizes:
    tp, pp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    trainer = {"tp": tp, "pp": pp}
    if pp == 2 and draw(st.booleans()):
        trainer["vpp"] = 2
    trainer["dp"] = draw(st.sampled_from([2, 3] if replicas else [1, 2]))
    if family in EXPERTS:
        trainer["ep"] = draw(st.sampled_from([1, 2, 4]))
        trainer["etp"] = draw(st.sampled_from([1, 2]))
        if trainer["dp"] == 3 and tp * trainer["dp"] % (trainer["ep"] * trainer["etp"]):
            trainer["ep"] = trainer["etp"] = 1
    return trainer


@st.composite
def worlds(draw: st.DrawFn, replicas: bool = False) -> Spec:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    return family, draw(trainers(family, replicas)), draw(engines(family))


@st.composite
def rounds(draw: st.DrawFn) -> tuple[str, Sizes, list[Sizes]]:
    """A trainer with replicas and two or three engines that differ."""
    family = draw(st.sampled_from(sorted(FAMILIES)))
    several = draw(st.lists(engines(family), min_size=2, max_size=3, unique_by=repr))
    return family, draw(trainers(family, replicas=True)), several
