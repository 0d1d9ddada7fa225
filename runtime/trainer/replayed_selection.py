"""Which tokens one layer's sparse attention goes to: those that were given for the call, or its indexer's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class ReplayedSelection:
    """Of one layer. `give` before each forward pass; recomputation goes where its forward pass went."""

    def __init__(self, counts: Tensor, recomputes: bool) -> None:
        """`counts`: int64 [2], tokens that attended to what was given: in forward passes, and recomputed."""
        self._counts, self._recomputes = counts, recomputes
        self._next: Callable[[], Tensor] | None = None
        self._to_recompute: list[Callable[[], Tensor]] = []
        self._records: dict[ReplayedSelection, Tensor] | None = None

    def give(self, positions: Callable[[], Tensor]) -> None:
        """Makes int [b, s, K] when the layer runs: for each token of the coming forward pass the positions in its
        sequence, -1 where there are fewer than K."""
        self._records, self._next = None, positions

    def record(self, into: dict[ReplayedSelection, Tensor]) -> None:
        """In the coming forward pass the indexer chooses; its choice goes `into[self]`."""
        self.forget()
        self._records = into

    def forget(self) -> None:
        """The coming passes are the indexer's."""
        self._next = self._records = None
        self._to_recompute.clear()

    def begin(self) -> Tensor | None:
        """The call's tokens, int64 [b, s, K]; None: the indexer chooses."""
        recomputing = torch._C._current_graph_task_id() != -1
        if recomputing and self._to_recompute:
            make = self._to_recompute.pop(0)
        elif self._next is None:
            return None
        else:
            make = self._next
            if self._recomputes:
                self._to_recompute.append(make)
        given = make()
        self._counts[int(recomputing)] += given.shape[0] * given.shape[1]
        return given.long()

    def chosen(self, positions: Tensor) -> None:
        """What the indexer chose in the call."""
        if self._records is not None:
            self._records[self] = positions
