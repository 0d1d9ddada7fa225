"""A trainer and an engine as tables of blocks with real memory: the element ids of a tiny model as weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tests.sync.test_layout import FAMILIES, config_of, hf_tensors, layout_of
from verst.sync.blocks import Blocks, held_blocks
from verst.sync.layout import ParallelSizes

Spec = tuple[str, dict[str, int], dict[str, int]]  # family, sizes of the trainer and of the engine


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
        e_tp, e_ep = engine.get("tp", 1), engine.get("ep", 1)
        e_world = max(e_tp, e_ep)
        served = ParallelSizes(world=e_world, tp=e_tp, ep=e_ep, etp=max(1, e_tp // e_ep))
        sets: dict[tuple, list[int]] = {}
        for rank in range(world):
            place = sizes.place(rank)
            sets.setdefault((place.tp, place.pp, place.etp, place.ep), []).append(rank)
        return cls(
            [_memory(family, sizes, rank, filled=True) for rank in range(world)],
            [_memory(family, served, rank, filled=False) for rank in range(e_world)],
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


def _memory(family: str, sizes: ParallelSizes, rank: int, *, filled: bool) -> Memory:
    config, tensors = model(family)
    pairs, expected = [], []
    for local in layout_of(config, sizes, rank).parameters:
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
def worlds(draw: st.DrawFn, replicas: bool = False) -> Spec:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    tp, pp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    trainer = {"tp": tp, "pp": pp}
    if pp == 2 and draw(st.booleans()):
        trainer["vpp"] = 2
    trainer["dp"] = draw(st.sampled_from([2, 3] if replicas else [1, 2]))
    engine = {"tp": draw(st.sampled_from([1, 2, 4]))}
    if family == "qwen3_moe":
        trainer["ep"] = draw(st.sampled_from([1, 2, 4]))
        trainer["etp"] = draw(st.sampled_from([1, 2]))
        if trainer["dp"] == 3 and tp * trainer["dp"] % (trainer["ep"] * trainer["etp"]):
            trainer["ep"] = trainer["etp"] = 1
        engine["ep"] = draw(st.sampled_from([1, 2, 4]))
    return family, trainer, engine
