"""The trainer's side of a weight transfer, in plain torch: rank 0 of a gloo group with one engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Backend, _new_process_group_helper, _world

from verst.runtime.messages.weight_round import Bucket, EngineLink
from verst.runtime.rollout.engine.engine import Engine
from verst.runtime.rollout.engine.server import free_port

_TIMEOUT = timedelta(seconds=60)


class WeightSource:
    """A group of this process and one engine with `ranks` ranks."""

    def __init__(self, engine: Engine, link: EngineLink, group: Any) -> None:
        self._engine, self._link, self._group = engine, link, group

    @classmethod
    async def connect(cls, engine: Engine, ranks: int = 1) -> WeightSource:
        link = EngineLink(
            engine=0,
            host="127.0.0.1",
            port=free_port("127.0.0.1"),
            name=f"weights-{uuid.uuid4().hex[:8]}",
            engine_ranks=ranks,
            backend="gloo",
            timeout_s=60,
        )
        join = asyncio.create_task(engine.init_weights_group(link))
        group = await asyncio.to_thread(_join, link)
        await join
        return cls(engine, link, group)

    async def send(self, weights: dict[str, torch.Tensor], version: int, buckets: int = 3) -> None:
        await self._each_bucket(weights, version, buckets, self._engine.receive)

    async def compare(self, weights: dict[str, torch.Tensor], version: int, buckets: int = 3) -> list[Any]:
        return await self._each_bucket(weights, version, buckets, self._engine.compare)

    async def _each_bucket(
        self,
        weights: dict[str, torch.Tensor],
        version: int,
        buckets: int,
        call: Callable[[Bucket, str], Awaitable[Any]],
    ) -> list[Any]:
        names, answers = list(weights), []
        for index in range(buckets):
            mine = names[index::buckets]
            bucket = Bucket(
                version=version,
                index=index,
                names=mine,
                dtypes=[str(weights[name].dtype).removeprefix("torch.") for name in mine],
                shapes=[list(weights[name].shape) for name in mine],
                last=index == buckets - 1,
            )
            answer = asyncio.ensure_future(call(bucket, self._link.name))
            await asyncio.to_thread(self._broadcast, [weights[name] for name in mine])
            answers.append(await answer)
        return answers

    def _broadcast(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor.contiguous(), src=0, group=self._group)

    async def close(self) -> None:
        await self._engine.leave_weights_group(self._link.name)
        dist.destroy_process_group(self._group)


def _join(link: EngineLink) -> Any:
    size = 1 + link.engine_ranks
    store = dist.TCPStore(
        link.host, link.port, size, is_master=True, timeout=_TIMEOUT, wait_for_workers=False
    )
    prefixed = dist.PrefixStore(link.name, store)
    group, _ = _new_process_group_helper(
        size, 0, [], Backend(link.backend), prefixed, group_name=link.name, timeout=_TIMEOUT
    )
    _world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return group
