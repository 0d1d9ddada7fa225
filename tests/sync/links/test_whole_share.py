"""Whole tensors are dealt to the ranks: each to one that holds some of it, all alike, with blocks from near by."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.weight_plans import CASES
from tests.sync.layout.test_layout import config_of, layout_of
from verst.recipes.models import deepseek_v3
from verst.sync.layout.layout import Layout, ParallelSizes
from verst.sync.links.gather import whole_tensors
from verst.sync.links.whole_share import Step, deal

WORLDS = {
    "tp2 dp2": ParallelSizes(world=4, tp=2, etp=2),
    "pp2 vpp2 tp2": ParallelSizes(world=4, tp=2, pp=2, vpp=2, etp=2),
    "tp4 ep2 dp4": ParallelSizes(world=16, tp=4, ep=2, etp=2),
    "tp2 pp2 cp2 ep4": ParallelSizes(world=16, tp=2, pp=2, cp=2, ep=4, etp=1, first_stage_layers=1),
}


def owned(steps: list[Step], world: int) -> list[int]:
    return [sum(step[rank].numel() for step in steps if rank in step) for rank in range(world)]


@pytest.mark.parametrize("name", WORLDS)
def test_each_tensor_has_one_owner_and_all_its_blocks(name: str) -> None:
    sizes = WORLDS[name]
    layout = layout_of(config_of("qwen3_moe"), sizes)
    tensors = whole_tensors(layout)
    steps = deal(layout, ([name] for name in tensors), 2, 1 << 14)
    names = [name for step in steps for bucket in step.values() for name in bucket.names]
    assert sorted(names) == sorted(tensors)
    replica = sizes.tp * sizes.cp
    for step in steps:
        for owner, bucket in step.items():
            assert bucket.numel() * 2 <= 1 << 14 or len(bucket.names) == 1
            assert bucket.numel() == sum(piece.numel for pieces in bucket.shares.values() for piece in pieces)
            assert all(abs(rank - owner) < replica for rank in bucket.shares), "of the owner's replica"
            for rank, pieces in bucket.shares.items():
                held = {(p.hf, p.start) for local in layout.at(rank).parameters for p in local.pieces}
                assert {(p.hf, p.start) for p in pieces} <= held
    largest = max(torch.Size(shape).numel() for shape in tensors.values())
    for stage in range(sizes.pp):
        ranks = [rank for rank in range(sizes.world) if sizes.place(rank).pp == stage]
        shares = [owned(steps, sizes.world)[rank] for rank in ranks]
        assert max(shares) - min(shares) <= largest


def test_what_belongs_together_is_assembled_together_and_few_ranks_have_little() -> None:
    layout = layout_of(config_of("qwen3_moe"), WORLDS["tp4 ep2 dp4"])
    tensors = list(whole_tensors(layout))
    groups = [tensors[i : i + 3] for i in range(0, len(tensors), 3)]
    attention = [name for name in tensors if ".experts." not in name]  # which every replica holds
    for group in groups:
        places = [
            (number, owner)
            for number, step in enumerate(deal(layout, groups, 2, 1 << 12))
            for owner, bucket in step.items()
            if bucket.names.count(group[0])
        ]
        assert len(places) == 1
    alone = deal(layout, ([name] for name in attention), 2, 1 << 30, least_bytes=1 << 30)
    assert [list(step) for step in alone] == [[0]]


@pytest.mark.long
def test_a_trillion_parameters_are_dealt_in_seconds() -> None:
    """Kimi-K2 on 256 ranks."""
    case = CASES["kimi-k2"]
    layout = Layout(deepseek_v3.FAMILY, case.config, case.trainer, 0)
    began = time.process_time()
    steps = deal(layout, ([name] for name in whole_tensors(layout)), 2, 1 << 30)
    assert time.process_time() - began < 30
    shares = owned(steps, 256)
    assert sum(shares) > 1e12
    assert max(shares) < 1.3 * sum(shares) / 256
