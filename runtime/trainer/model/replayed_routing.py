"""Replays the choice of experts in one router, in place of Megatron's `RouterReplay`.

Megatron's routers pass their scores to `get_replay_topk` and use the experts that it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FREE, REPLAYED, PADDING = 0, 1, 2  # the fates of a token in a layer


def index_dtype(experts: int) -> torch.dtype:
    """The narrowest dtype that holds an expert's index.

    Torch must be able to index with it and compare it on every device.
    """
    if experts <= 256:
        return torch.uint8
    return torch.int16 if experts <= 1 << 15 else torch.int32


@dataclass
class _Given:
    """The experts that a router was given for one micro-batch of t tokens."""

    indices: Tensor  # [t, K], the narrowest dtype
    fate: Tensor  # uint8 [t]


class ReplayedRouting:
    """Replaces the `RouterReplay` of one router.

    It decides for each call what to replay, and counts the outcome.
    """

    def __init__(self, counts: Tensor, experts: int, recomputes: bool) -> None:
        self._counts = counts
        self._recomputes = recomputes
        self._dtype = index_dtype(experts)
        self._next: _Given | None = None
        self._differing: Tensor | None = None
        self._to_recompute: list[_Given] = []
        self._records: dict[ReplayedRouting, Tensor] | None = None
        self._used: tuple[Tensor, Tensor] | None = None  # indices and fate of the current call

    def give(self, indices: Tensor, fate: Tensor, differing: Tensor) -> None:
        """Sets the experts of the next forward pass, `indices` [t, K], and each token's `fate`, uint8 [t].

        The pass sets `differing`, bool [t], where the router's own top-k is another set.
        """
        self._records = None
        self._next = _Given(indices, fate)
        self._differing = differing

    def record(self, into: dict[ReplayedRouting, Tensor]) -> None:
        """Lets the router choose freely in the next forward pass, and stores its choice as `into[self]`."""
        self.forget()
        self._records = into

    def forget(self) -> None:
        """Lets the router choose freely from now on."""
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
        """Megatron's hook: scores [t, experts] -> scores and indices [t, K] of the experts to use."""
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
        """Counts how often the router's own choice differs, and uses it for tokens whose experts are not
        known."""
        replayed = given.fate == REPLAYED
        wanted = given.indices.long()
        differs = (free.sort(1).values != wanted.sort(1).values).any(1) & replayed
        choose = given.fate == FREE
        self._counts[0] += replayed.sum()
        self._counts[3] += differs.sum()
        self._counts[4] += choose.sum()
        if self._differing is not None:
            self._differing |= differs
        # The recomputation must use the same experts as this pass.
        return _Given(torch.where(choose[:, None], free.to(given.indices.dtype), given.indices), given.fate)

    def check(self, router: torch.nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        """Forward hook of the router: counts tokens that it did not send to the given experts.

        The router returns a map, bool [t, experts].
        """
        if self._used is None:
            return
        indices, fate = self._used
        chosen = output[1].flatten(0, -2)
        right = chosen.gather(1, indices).all(1) & (chosen.sum(1) == indices.shape[1])
        self._counts[2] += (~right & (fate != PADDING)).sum()
        self._used = None
