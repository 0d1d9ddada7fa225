"""Decides which tokens one layer's sparse attention goes to.

They are given, or chosen by another layer, or chosen by the layer's own indexer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 1024  # tokens to compare at once

# Returns int [1, t, K]: positions in the token's sequence, -1 where there are fewer than K.
Positions = Callable[[], Tensor]


@dataclass
class Comparison:
    """Compares given choices with the indexers' own in one micro-batch."""

    tokens: Tensor  # bool [1, t]: tokens with a known choice among more than K positions
    differs: Tensor  # bool [1, t], filled in: tokens for which some layer's indexer chooses another set


class SelectionCounts:
    """Counts over all layers of a rank."""

    def __init__(self, device: torch.device) -> None:
        # Tokens replayed, recomputed and wrong; positions compared, and those that the indexer would not
        # choose.
        self._sums = torch.zeros(5, dtype=torch.int64, device=device)

    def tokens(self, recomputed: bool, count: int, wrong: Tensor | int) -> None:
        """Adds a call's tokens with a given choice, and how many of them attended to something else."""
        self._sums[int(recomputed)] += count
        self._sums[2] += wrong

    def compared(self, positions: int, missing: Tensor) -> None:
        """Adds the given positions that were compared, and those that the indexer would not choose."""
        self._sums[3] += positions
        self._sums[4] += missing

    def clear(self) -> None:
        """Resets all counts to zero."""
        self._sums.zero_()

    def take(self) -> tuple[int, ...]:
        """Returns the counts: replayed, recomputed, wrong, compared, missing."""
        return tuple(self._sums.tolist())


@dataclass(frozen=True)
class _Told:
    """Where the choice of a call comes from."""

    make: Positions
    given: bool  # False: it is the choice of the layer that this one follows


class ReplayedSelection:
    """The choices of one layer.

    Call `give` before each forward pass. The recomputation of that pass gets the same choice.
    """

    def __init__(self, recomputes: bool) -> None:
        self.counts: SelectionCounts | None = None
        self._recomputes = recomputes
        self._source: ReplayedSelection | None = None
        self._followed = False
        self._latest: Tensor | None = None  # the indexer's last choice, if other layers follow this one
        self._next: _Told | None = None
        self._to_recompute: list[_Told] = []
        self._records: dict[ReplayedSelection, Tensor] | None = None
        self._comparison: Comparison | None = None
        # Of the current call: the given choice, and whether it is a recomputation.
        self._call: tuple[Tensor, bool] | None = None

    def follow(self, source: ReplayedSelection) -> None:
        """Follows `source`: a layer without an indexer attends to what `source` chose in the same pass.

        A given choice takes precedence.
        """
        self._source, source._followed = source, True

    def give(self, positions: Positions, comparison: Comparison | None = None) -> None:
        """Sets the choice of the next forward pass, and optionally compares it with the indexer's own."""
        self._records, self._comparison = None, comparison
        self._next = _Told(positions, given=True)

    def record(self, into: dict[ReplayedSelection, Tensor]) -> None:
        """Lets the indexer choose in the next forward pass, and stores its choice as `into[self]`."""
        self.choose()
        self._records = into

    def choose(self) -> None:
        """Lets the indexer choose in the next forward pass."""
        self._next = self._records = self._comparison = None

    def forget(self) -> None:
        """Drops everything at the end of a pass over the micro-batches."""
        self.choose()
        self._latest = self._call = None
        self._to_recompute.clear()

    @property
    def wants_choice(self) -> bool:
        """Whether the layer must report its indexer's choice to `chosen`."""
        return self._records is not None or self._followed

    def begin(self) -> Tensor | None:
        """Begins a call; returns the tokens to attend to, int64 [1, t, K]. None: let the indexer choose."""
        recomputing = torch._C._current_graph_task_id() != -1
        if recomputing and self._to_recompute:
            told = self._to_recompute.pop(0)
        else:
            found = self._next or self._shared()
            if found is None:
                return None
            told = found
            if self._recomputes:
                self._to_recompute.append(told)
        positions = told.make().long()
        self._call = (positions, recomputing) if told.given else None
        if self._records is not None:
            self._records[self] = positions
        return positions

    def _shared(self) -> _Told | None:
        if self._source is None:
            return None
        latest = self._source._latest
        assert latest is not None, "a layer ran before the one whose choice it shares"
        return _Told(lambda: latest, given=False)

    def chosen(self, positions: Tensor) -> None:
        """Reports the indexer's choice in the current call."""
        if self._records is not None:
            self._records[self] = positions
        if self._followed:
            self._latest = positions

    def attended(self, positions: Tensor | None) -> None:
        """Reports the choice that attention used in the current call, int64 [1, t, K]; None at the call's
        end.

        Counts the tokens that attended to something else than given. Only the first report of a call counts.
        """
        if self._call is None or self.counts is None:
            return
        (given, recomputing), self._call = self._call, None
        count = given.shape[0] * given.shape[1]
        wrong: Tensor | int = count
        if positions is given:
            wrong = 0
        elif positions is not None and positions.shape == given.shape:
            wrong = (positions != given).any(-1).sum()
        self.counts.tokens(recomputing, count, wrong)

    @property
    def compares(self) -> bool:
        """Whether the current call needs the indexer's own choice, for `compare`."""
        return self._comparison is not None and self._call is not None and not self._call[1]

    def compare(self, own: Tensor) -> None:
        """Compares the given choice with the indexer's own, int [1, t, up to K]."""
        assert self._comparison is not None
        assert self._call is not None
        assert self.counts is not None
        tokens = self._comparison.tokens
        given = self._call[0][tokens]
        differs = torch.zeros(len(given), dtype=torch.bool, device=given.device)
        if not len(given):
            return
        for rows, mine, told in zip(
            differs.split(_ROWS), own[tokens].split(_ROWS), given.split(_ROWS), strict=True
        ):
            missing = _absent(told, mine)
            rows |= missing.any(1)
            self.counts.compared(told.numel(), missing.sum())
        self._comparison.differs[tokens] |= differs


def _absent(told: Tensor, mine: Tensor) -> Tensor:
    """Marks the elements of `told` [t, K] that are not in the same row of `mine` [t, K']: bool [t, K]."""
    ordered = mine.sort(1).values.contiguous()
    places = torch.searchsorted(ordered, told.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, places) != told
