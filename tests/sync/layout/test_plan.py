"""A plan promises: every element of the engine exactly once, from a rank that holds it, loads alike."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tests.examples import examples
from tests.sync.plan_worlds import FAMILIES, Sizes, Spec, World, model, rounds, worlds
from verst.sync.layout.blocks import Blocks
from verst.sync.layout.plan import ALIGN, Plan, PlanError, make_plan
from verst.sync.layout.schedule import Bucket, schedule


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    """Made once, and outside of hypothesis: transformers draws random numbers."""
    for family in FAMILIES:
        model(family)


def plan_of(world: World, bucket_bytes: int, engine: int = 1) -> Plan:
    return make_plan(
        [m.blocks for m in world.trainer], [m.blocks for m in world.engine], bucket_bytes, engine
    )


def run(world: World, plan: Plan) -> list[list[Bucket]]:
    """Plays a plan on the world's memories, message by message; returns all schedules."""
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
    return todo


@examples(worlds(), st.sampled_from([1 << 12, 1 << 16, 1 << 24]), few=6, many=50)
def test_every_element_arrives_exactly_once_whatever_the_two_layouts(spec: Spec, bucket_bytes: int) -> None:
    world = World.of(*spec)
    plan = plan_of(world, bucket_bytes)
    todo = run(world, plan)
    for memory in world.engine:
        memory.assert_complete()
    # What is in several receivers crosses from the trainer once.
    assert plan.nbytes == world.engine_bytes_once()
    longest = plan.segments["nbytes"].max()
    for rank, mine in enumerate(todo):
        largest = max(bucket.nbytes for bucket in mine)
        # Of each stream a bucket has its share, at most one segment more, and a page or so of checksums.
        ways = zip(plan.stream_sender, plan.stream_holders, strict=True)
        streams = sum(rank in (sender, *holders) for sender, holders in ways)
        assert largest <= 4 * bucket_bytes + streams * (longest + 3 * ALIGN), (rank, largest, streams)


def test_buckets_of_tiny_segments_are_no_larger_than_others() -> None:
    """Each takes a page, however few its bytes."""
    layouts = (
        {"tp": 4, "pp": 2, "dp": 2, "ep": 4, "etp": 2},
        {"tp": 4, "ep": 1, "dp": 2, "dp_lm_head": 0, "dense": 1},
    )
    world = World.of("glm_moe_dsa", *layouts)
    todo = run(world, plan_of(world, 1 << 12))
    assert max(bucket.nbytes for mine in todo for bucket in mine) <= 1 << 16


def sent_by(plan: Plan) -> np.ndarray:
    return np.bincount(plan.segments["sender"], plan.segments["nbytes"], minlength=plan.senders)


def unfairness(plan: Plan, rank: int) -> int:
    """Bytes by which replicas may differ: a segment of each kind that `rank` holds (cut by one or another size)."""
    sets = {
        tuple(sorted(plan.source.holders[begin:end].tolist()))
        for begin, end in pairwise(plan.source.begin.tolist())
    }
    return sum(rank in holders for holders in sets) * int(plan.segments["nbytes"].max())


@examples(worlds(replicas=True), few=4, many=30)
def test_replicas_share_the_sending(spec: Spec) -> None:
    world = World.of(*spec)
    plan = plan_of(world, 1 << 14)
    load = sent_by(plan)
    for replicas in world.replica_sets:
        assert max(load[replicas]) - min(load[replicas]) <= unfairness(plan, replicas[0])


@examples(worlds(), few=5, many=30)
def test_ranks_of_an_engine_share_the_receiving_of_what_several_hold(spec: Spec) -> None:
    """Attention that is the same on all of an engine's ranks comes in over the links of all of them."""
    world = World.of(*spec)
    plan = plan_of(world, 1 << 14)
    alone, shared = np.zeros(plan.receivers), defaultdict(list)
    for (begin, end), nbytes in zip(pairwise(plan.target.begin), plan.target.nbytes, strict=True):
        holders = {*plan.target.holders[begin:end].tolist()}
        if len(holders) == 1:
            alone[holders.pop() - plan.senders] += nbytes
        else:
            shared[tuple(sorted(holders))].append(nbytes)
    largest = max(map(max, shared.values()), default=0)
    load = np.bincount(
        plan.segments["first"] - plan.senders, plan.segments["nbytes"], minlength=plan.receivers
    )
    for holders in shared:
        mine = np.array(holders) - plan.senders
        uneven = alone[mine].max() - alone[mine].min()
        assert load[mine].max() - load[mine].min() <= uneven + 2 * largest


@examples(rounds(), few=3, many=20)
def test_engines_of_different_sizes_in_one_round_burden_replicas_alike(
    spec: tuple[str, Sizes, list[Sizes]],
) -> None:
    family, trainer, engines = spec
    plans = []
    for number, engine in enumerate(engines):
        world = World.of(family, trainer, engine)
        plans.append(plan_of(world, 1 << 14, number))
        run(world, plans[-1])
        for memory in world.engine:
            memory.assert_complete()
        assert plans[-1].nbytes == world.engine_bytes_once()
    load = sum(sent_by(plan) for plan in plans)
    for replicas in world.replica_sets:
        allowed = sum(unfairness(plan, replicas[0]) for plan in plans)
        assert max(load[replicas]) - min(load[replicas]) <= allowed


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
