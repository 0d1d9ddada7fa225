"""One router's replay: stands where Megatron's `RouterReplay` stands, and decides call by call.

Megatron's routers hand their scores to `get_replay_topk` and take what comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FREE, REPLAYED, PADDING = 0, 1, 2  # what becomes of a token in a layer


def index_dtype(experts: int) -> torch.dtype:
    """The narrowest dtype that torch indexes and compares everywhere and that holds an expert's index."""
    if experts <= 256:
        return torch.uint8
    return torch.int16 if experts <= 1 << 15 else torch.int32


@dataclass
class _Given:
    """What a router was told about one micro-batch."""

    indices: Tensor  # [t, K], the narrowest dtype
    fate: Tensor  # uint8 [t]


class ReplayedRouting:
    """Stands where Megatron's `RouterReplay` stands in one router, decides call by call, and counts."""

    def __init__(self, counts: Tensor, experts: int, recomputes: bool) -> None:
        self._counts = counts
        self._recomputes = recomputes
        self._dtype = index_dtype(experts)
        self._next: _Given | None = None
        self._differing: Tensor | None = None
        self._to_recompute: list[_Given] = []
        self._records: dict[ReplayedRouting, Tensor] | None = None
        self._used: tuple[Tensor, Tensor] | None = None  # indices and fate of the call in progress

    def give(self, indices: Tensor, fate: Tensor, differing: Tensor) -> None:
        """The experts of the coming forward pass; sets in `differing`, bool [t], where its own top-k is another
        set."""
        self._records = None
        self._next = _Given(indices, fate)
        self._differing = differing

    def record(self, into: dict[ReplayedRouting, Tensor]) -> None:
        """In the coming forward pass the router chooses freely; its choice goes `into[self]`."""
        self.forget()
        self._records = into

    def forget(self) -> None:
        """The coming passes are free."""
        self._next = self._records = self._used = self._differing = None
        self._to_recompute.clear()

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Megatron's hook: scores [t, experts] -> their values and indices [t, K]."""
        assert default_compute_topk is not None
        recomputing = torch._C._current_graph_task_id() != -1
        if self._next is None and not (recomputing and self._to_recompute):
            values, indices = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
            if self._records is not None:
                self._records[self] = indices.to(self._dtype)
            return values, indices
        if recomputing:
            given = self._to_recompute.pop(0)
            self._counts[1] += (given.fate == REPLAYED).sum()
        else:
            assert self._next is not None
            with torch.no_grad():
                free = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)[1]
                given = self._compared(self._next, free)
            if self._recomputes:
                self._to_recompute.append(given)
        indices = given.indices.long()
        self._used = (indices, given.fate)
        return scores.gather(1, indices), indices

    def _compared(self, given: _Given, free: Tensor) -> _Given:
        """Counts what the router would have chosen, and lets it choose where nothing is known."""
        replayed = given.fate == REPLAYED
        wanted = given.indices.long()
        differs = (free.sort(1).values != wanted.sort(1).values).any(1) & replayed
        choose = given.fate == FREE
        self._counts[0] += replayed.sum()
        self._counts[3] += differs.sum()
        self._counts[4] += choose.sum()
        if self._differing is not None:
            self._differing |= differs
        # Recomputation must go where this pass went.
        return _Given(torch.where(choose[:, None], free.to(given.indices.dtype), given.indices), given.fate)

    def check(self, router: torch.nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        """Forward hook of the router: does the map it returns, bool [t, experts], name the given experts?"""
        if self._used is None:
            return
        indices, fate = self._used
        chosen = output[1].flatten(0, -2)
        right = chosen.gather(1, indices).all(1) & (chosen.sum(1) == indices.shape[1])
        self._counts[2] += (~right & (fate != PADDING)).sum()
        self._used = None
