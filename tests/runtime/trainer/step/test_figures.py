"""Figures are means over the tokens of all ranks under one name, or the step is refused on every rank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.sync.world import run_world
from verst.runtime.hooks.errors import HookError
from verst.runtime.trainer.step.figures import Figures


def figures(rank: int, last_stage: bool = True) -> Figures:
    return Figures(
        SimpleNamespace(device=torch.device("cpu"), world_size=2, tp_rank=0, is_last_stage=last_stage)
    )  # type: ignore[arg-type]


def _over_two_ranks(rank: int, world: int, store: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    counted = torch.tensor([1.0, 1.0, 0.0])
    values = torch.tensor([1.0, 3.0, torch.nan]) + rank  # what does not count may be anything
    both = figures(rank)
    both.add(
        {"b": (values, counted), "a": (values * 0 + 7, counted * rank)}, {"most": torch.tensor([1.0, rank])}
    )
    means, counts = both.reduce()
    assert means == {"a": 7.0, "b": 2.5, "most": 1.0}
    assert counts == {"a": 2.0, "b": 4.0}

    pipeline = figures(rank, last_stage=rank == 1)  # rank 0 sees no tokens
    if rank == 1:
        pipeline.add({"b": (values, counted)}, {})
    assert pipeline.reduce()[0] == {"b": 3.0}

    for of_rank in ([["up"], ["down"]], [["up"], ["more", "up"]]):
        other = figures(rank)
        other.add({name: (values, counted) for name in of_rank[rank]}, {})
        with pytest.raises(HookError, match="reports other metrics on some trainer ranks than on others"):
            other.reduce()
    dist.destroy_process_group()


def test_ranks_that_report_other_names_are_refused_on_every_rank() -> None:
    run_world(2, _over_two_ranks)


def test_micro_batches_that_report_other_names_are_refused() -> None:
    one = figures(0)
    token = (torch.ones(1), torch.ones(1))
    one.add({"a": token}, {})
    with pytest.raises(HookError, match=r"must be the same in each micro-batch; these differ: \['b'\]"):
        one.add({"a": token, "b": token}, {})
