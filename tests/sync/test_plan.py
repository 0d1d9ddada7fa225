"""A plan promises: every element of the engine exactly once, from a rank that holds it, loads alike."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sync.plan_worlds import FAMILIES, Spec, World, model, worlds
from verst.sync.blocks import Blocks
from verst.sync.plan import PlanError, make_plan
from verst.sync.schedule import Bucket, schedule


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    """Made once, and outside of hypothesis: transformers draws random numbers."""
    for family in FAMILIES:
        model(family)


def run(world: World, bucket_bytes: int) -> tuple[int, list[list[Bucket]]]:
    """Plays a plan on the world's memories, message by message; returns the bytes and all schedules."""
    plan = make_plan(
        [m.blocks for m in world.trainer], [m.blocks for m in world.engine], bucket_bytes, rotation=1
    )
    memories = world.trainer + world.engine
    todo = [schedule(plan, rank) for rank in range(len(memories))]
    for number in range(plan.buckets):
        buckets = [mine[number] for mine in todo]
        slots = [torch.full((bucket.nbytes,), 0xAB, dtype=torch.uint8) for bucket in buckets]
        for rank in range(plan.senders):
            for view, place in memories[rank].views(slots[rank], buckets[rank].moves):
                view.copy_(place)
        for sends, receives in (("sends", "receives"), ("pass_on", "passed")):
            on_the_wire = defaultdict(list)
            for rank, bucket in enumerate(buckets):
                for message in getattr(bucket, sends):
                    data = slots[rank][message.position : message.position + message.nbytes]
                    on_the_wire[rank, message.peer].append(data)
            for rank, bucket in enumerate(buckets):
                for message in getattr(bucket, receives):
                    data = on_the_wire[message.peer, rank].pop(0)
                    slots[rank][message.position : message.position + message.nbytes] = data
            assert not any(on_the_wire.values()), "every message is received"
        for rank in range(plan.senders, len(memories)):
            for view, place in memories[rank].views(slots[rank], buckets[rank].moves):
                memories[rank].written(place)
                place.copy_(view)
    return plan.nbytes, todo


@settings(deadline=None, max_examples=60)
@given(worlds(), st.sampled_from([1 << 12, 1 << 16, 1 << 24]))
def test_every_element_arrives_exactly_once_whatever_the_two_layouts(spec: Spec, bucket_bytes: int) -> None:
    world = World.of(*spec)
    wire, todo = run(world, bucket_bytes)
    for memory in world.engine:
        memory.assert_complete()
    # What is in several receivers crosses from the trainer once.
    assert wire == world.engine_bytes_once()
    for rank, mine in enumerate(todo):
        largest = max(bucket.nbytes for bucket in mine)
        assert largest <= 4 * bucket_bytes + (1 << 20), (rank, largest)


@settings(deadline=None, max_examples=30)
@given(worlds(replicas=True))
def test_replicas_share_the_sending(spec: Spec) -> None:
    world = World.of(*spec)
    plan = make_plan([m.blocks for m in world.trainer], [m.blocks for m in world.engine], 1 << 14)
    load = np.bincount(plan.segments["sender"], plan.segments["nbytes"], minlength=plan.senders)
    largest = int(plan.segments["nbytes"].max())
    for replicas in world.replica_sets:
        assert max(load[replicas]) - min(load[replicas]) <= 2 * largest * plan.senders


def test_what_nobody_holds_is_named() -> None:
    world = World.of("qwen3", {"tp": 2, "pp": 2}, {"tp": 2})
    trainer = [m.blocks for m in world.trainer]
    first = trainer[0]
    hole = Blocks(first.names, first.shapes, first.rows[1:], first.dtypes)
    missing = first.names[first.rows[0]["tensor"]]
    with pytest.raises(PlanError, match=f"no trainer rank holds all of {missing}$"):
        make_plan([hole, *trainer[1:]], [m.blocks for m in world.engine], 1 << 20)


def test_blocks_cross_the_wire_unchanged() -> None:
    blocks = World.of("qwen3_moe", {"tp": 2, "ep": 2}, {"tp": 1}).trainer[1].blocks
    again = Blocks.unpack(blocks.pack())
    assert (again.names, again.shapes, again.dtypes) == (blocks.names, blocks.shapes, blocks.dtypes)
    assert (again.rows == blocks.rows).all()
