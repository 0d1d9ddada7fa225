"""A transfer promises: what the plan says, over real connections, checked; and an end by the deadline.

Each rank is a thread with a gloo backend of its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from tests.sync.plan_worlds import World
from verst.sync.layout.blocks import Blocks
from verst.sync.layout.plan import make_plan
from verst.sync.layout.schedule import schedule
from verst.sync.wire.exchange import Receiver, Sender, WrongChecksum
from verst.sync.wire.groups import Backend, Source, join
from verst.sync.wire.shared_memory import Exported, NotMappable
from verst.sync.wire.shared_wire import SharedWire
from verst.sync.wire.wire import TransferError, Wire

CASES = [
    ("llama", {"tp": 2, "pp": 2}, {"tp": 1}),
    ("qwen3", {"tp": 1, "dp": 2}, {"tp": 4}),
    ("qwen3_moe", {"tp": 2, "ep": 2, "etp": 1}, {"tp": 2, "ep": 2}),
    ("qwen3_moe", {"pp": 2, "vpp": 2}, {"tp": 2}),
]


class TwoNodes(SharedWire):
    """Even and odd ranks cannot map one another's memory."""

    def _map(self, peer: int, slots: list[Exported]) -> list[torch.Tensor]:
        if (peer - self.backend.rank()) % 2:
            raise NotMappable("another node")
        return super()._map(peer, slots)


WIRES: dict[str, Callable[[Backend], Wire]] = {
    "gloo": Wire,
    "shared": lambda backend: SharedWire(backend, torch.device("cpu")),
    "two nodes": lambda backend: TwoNodes(backend, torch.device("cpu")),
}


class Ranks:
    """All ranks of a world, met in one group, with their ends."""

    def __init__(self, world: World, bucket_bytes: int = 1 << 14, wire: str = "gloo") -> None:
        self.wire = WIRES[wire]
        self.world = world
        self.memories = world.trainer + world.engine
        self.source = Source("127.0.0.1")
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        self.bucket_bytes = bucket_bytes
        self.pool = ThreadPoolExecutor(len(self.memories))
        futures = [self.pool.submit(self._open, rank) for rank in range(len(self.memories))]
        self.ends = [future.result(60) for future in futures]

    def _open(self, rank: int) -> Sender | Receiver:
        backend = join("127.0.0.1", self.source.port, self.name, rank, len(self.memories), "gloo")
        wire = self.wire(backend)
        tables = wire.share(self.memories[rank].blocks.pack(), time.monotonic() + 30)
        blocks = [Blocks.unpack(table) for table in tables]
        senders = len(self.world.trainer)
        plan = make_plan(blocks[:senders], blocks[senders:], self.bucket_bytes)
        kind = Sender if rank < senders else Receiver
        end = kind(wire, schedule(plan, rank), self.memories[rank].parameters)
        wire.attach(end.memory, time.monotonic() + 30)
        return end

    def run(self, deadline_s: float = 30, version: Callable[[int], int] = lambda rank: 7) -> list[Future]:
        """A version on every rank; `version` says which a rank believes in."""
        deadline = time.monotonic() + deadline_s
        return [
            self.pool.submit(end.send if isinstance(end, Sender) else end.receive, version(rank), deadline)
            for rank, end in enumerate(self.ends)
        ]

    def engine_is_right(self) -> bool:
        return all(
            torch.equal(p, e)
            for m in self.world.engine
            for p, e in zip(m.parameters, m.expected, strict=True)
        )


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("family", "trainer", "engine"), CASES)
def test_versions_arrive_one_after_another(family: str, trainer: dict, engine: dict, wire: str) -> None:
    ranks = Ranks(World.of(family, trainer, engine), wire=wire)
    for round_ in range(2):
        for future in ranks.run(version=lambda rank, v=round_: v):
            future.result(60)
        assert ranks.engine_is_right()
        for memory in ranks.world.engine:
            for parameter, expected in zip(memory.parameters, memory.expected, strict=True):
                parameter.copy_(torch.where(expected < 0, expected, 0))


@pytest.mark.parametrize("wire", WIRES)
def test_a_changed_byte_and_another_version_are_found(wire: str) -> None:
    world = World.of("qwen3_moe", {"tp": 2}, {"tp": 2})
    ranks = Ranks(world, wire=wire)
    with pytest.raises(WrongChecksum):
        [f.result(60) for f in ranks.run(version=lambda rank: 3 if rank < 2 else 4)]

    sender = ranks.ends[0]
    assert isinstance(sender, Sender)
    bucket = sender._buckets[1]
    sign = bucket.sign

    def damage(version: int) -> None:
        sign(version)
        bucket.slot[int(bucket.bucket.rows[2][0]) * 4096 + 5] ^= 1

    bucket.sign = damage  # type: ignore[method-assign]
    outcomes = [f.exception(60) for f in ranks.run()]
    found = [o for o in outcomes if isinstance(o, WrongChecksum)]
    assert found
    assert all(o.tensors == [int(bucket.bucket.tensors[2])] for o in found)
    assert outcomes[:2] == [None, None], "only the engine can know"


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("silent", [0, 3])
def test_a_rank_that_takes_no_part_is_given_up_at_the_deadline(silent: int, wire: str) -> None:
    world = World.of("qwen3", {"tp": 2}, {"tp": 2})
    ranks = Ranks(world, wire=wire)
    gone = threading.Event()
    end = ranks.ends[silent]
    end.send = end.receive = lambda version, deadline: gone.wait(10)  # type: ignore[union-attr,method-assign]
    started = time.monotonic()
    outcomes = [f.exception(30) for rank, f in enumerate(ranks.run(deadline_s=1.0)) if rank != silent]
    assert time.monotonic() - started < 8
    assert any(isinstance(o, TransferError) for o in outcomes)
    assert all(o is None or isinstance(o, TransferError) for o in outcomes)
    gone.set()
