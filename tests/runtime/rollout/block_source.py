"""Trainer ranks without Megatron: blocks of a model's weights in any layout, sent to a real engine.

Each rank is a thread; what it holds follows from the layout alone.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import torch

from verst.runtime.messages.weight_round import EngineLink, Taken
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.weight_receiver import WeightReceiver
from verst.sync.layout.blocks import Blocks, held_blocks
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.layout.mapping import family_for
from verst.sync.links.block_link import BlockLink
from verst.sync.wire.groups import EngineError, Source
from verst.sync.wire.wire import Slots

TIMEOUT_S = 60.0


class Rank:
    """One trainer rank's memory."""

    def __init__(self, config: dict[str, Any], sizes: ParallelSizes, rank: int) -> None:
        self._locals = Layout(family_for(config), config, sizes, rank).parameters
        self._pairs = [(local, torch.zeros(local.shape)) for local in self._locals]
        self.blocks: Blocks
        self.blocks, self.parameters = held_blocks(self._pairs)

    def fill(self, weights: dict[str, torch.Tensor]) -> None:
        for local, parameter in self._pairs:
            for piece in local.pieces:
                piece.write(parameter, weights[piece.hf].narrow(piece.dim, piece.start, piece.length))


class BlockSource:
    """The trainer's ranks and their links with one engine."""

    def __init__(self, engine: Engine, config: dict[str, Any], sizes: ParallelSizes) -> None:
        self.engine = engine
        self.ranks = [Rank(config, sizes, rank) for rank in range(sizes.world)]
        self.links: list[BlockLink] = []
        self._source = Source("127.0.0.1")

    async def connect(
        self,
        engine_ranks: int = 1,
        bucket_bytes: int = 1 << 16,
        shared: bool = False,
        double_buffer: bool = False,
    ) -> None:
        """Joins with the engine. Raises EngineError with each rank's reason."""
        self.link = EngineLink(
            engine=0,
            host="127.0.0.1",
            port=self._source.port,
            name=f"blocks-{uuid.uuid4().hex[:8]}",
            carries="blocks",
            trainer_ranks=len(self.ranks),
            engine_ranks=engine_ranks,
            backend="gloo",
            shared=shared,
            double_buffer=double_buffer,
            bucket_bytes=bucket_bytes,
            timeout_s=TIMEOUT_S,
        )
        self._receiver = WeightReceiver(self.engine)
        answer = asyncio.create_task(self._receiver.open_link(self.link))
        operations = [
            BlockLink.open(
                engine=0,
                host=self.link.host,
                port=self.link.port,
                name=self.link.name,
                rank=number,
                trainer_ranks=len(self.ranks),
                engine_ranks=engine_ranks,
                backend="gloo",
                shared=shared,
                bucket_bytes=bucket_bytes,
                timeout_s=TIMEOUT_S,
                blocks=rank.blocks,
                parameters=rank.parameters,
                slots=Slots(),
            )
            for number, rank in enumerate(self.ranks)
        ]
        deadline = time.monotonic() + TIMEOUT_S
        reasons = [await asyncio.to_thread(o.wait, deadline, lambda: None) for o in operations]
        await answer
        if any(reasons):
            raise EngineError(f"{reasons}")
        self.links = [operation.result() for operation in operations]

    async def send(
        self, weights: dict[str, torch.Tensor], version: int, timeout_s: float = TIMEOUT_S, late_s: float = 0
    ) -> Taken:
        """A version into the engine; the ranks begin `late_s` after it was told to receive."""
        for rank in self.ranks:
            rank.fill(weights)
        receiving = asyncio.create_task(
            self._receiver.receive_blocks(version, "in_place", timeout_s, go_on=True)
        )
        await asyncio.wait([receiving], timeout=late_s)
        deadline = time.monotonic() + timeout_s
        sending = [link.start(version, deadline) for link in self.links]
        for operation in sending:
            reason = await asyncio.to_thread(operation.wait, deadline, lambda: None)
            assert reason is None, reason
        return await receiving

    async def close(self) -> None:
        await self.engine.leave_weights_group(self.link.name)
        for link in self.links:
            link.abandon()
