"""The other processes: rollout workers around a wait instead of an engine, and store shards without a journal."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks.state_machine import ROOM, meta
from verst.runtime.actors import Member
from verst.runtime.messages.apis import ControllerApi, RolloutApi, StoreApi
from verst.runtime.messages.jobs import EngineInfo, PromptJob, RolloutStats
from verst.runtime.messages.sample import Group, GroupMeta
from verst.runtime.run.folder import RunFolder

JOIN_S = 60.0  # the workers join evenly over this time
GENERATE_S = 60.0  # a group takes between half and one and a half of it
STORES = 2


class Store(StoreApi):
    """A shard that keeps nothing."""

    async def push(self, group: Group) -> GroupMeta:
        return meta(group.id, 0)


async def stores(folder: RunFolder) -> None:
    """All store shards."""
    for index in range(STORES):
        await Member.join(folder, "store", index, Store())
    await asyncio.Event().wait()


async def workers(folder: RunFolder, engines: int, began: float, first: int, last: int) -> None:
    """Workers first … last-1, each joining when it is its turn."""
    async with asyncio.TaskGroup() as group:
        for number in range(first, last):
            # Its place in time is another than its place in the processes: all of these begin at once.
            turn = (number * 7919) % engines / engines
            group.create_task(worker(folder, number, began + JOIN_S * turn))


async def worker(folder: RunFolder, number: int, at: float) -> None:
    """The loop of runtime/rollout/worker.py around a wait instead of an engine."""
    await asyncio.sleep(at - time.monotonic())
    member = await Member.join(folder, "rollout", number, RolloutApi(), details={"engine_ranks": 1})
    controller = member.handle(ControllerApi, "controller", 0, timeout=30)
    await controller.engine_ready(EngineInfo(engine=number, incarnation=member.info.incarnation))
    room, finished = ROOM, asyncio.Event()

    async def answer(job: PromptJob) -> None:
        nonlocal room
        await asyncio.sleep(GENERATE_S * random.uniform(0.5, 1.5))
        store = member.handle(StoreApi, "store", job.id % STORES, timeout=60)
        done = await store.push(Group(id=job.id, samples=[]))
        stats = RolloutStats(response_tokens=6400, seconds=GENERATE_S, reward_seconds=0.1)
        await controller.accepted(number, done, stats)
        room += job.samples
        finished.set()

    async with asyncio.TaskGroup() as answers:
        while True:
            if room <= 0:
                finished.clear()
                await finished.wait()
            for job in await controller.take(number, room):
                room -= job.samples
                answers.create_task(answer(job))
