"""Which tokens one layer's sparse attention goes to: those that were given for the call, those of the layer whose
choice it shares, or its indexer's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 1024  # tokens that are compared at once

# Makes int [b, s, K]: positions in the sequence, -1 where there are fewer than K.
Positions = Callable[[], Tensor]


@dataclass
class Comparison:
    """What is compared with the indexers' own choices in a micro-batch."""

    tokens: Tensor  # bool [b, s]: those with a known choice among more than K
    differs: Tensor  # bool [b, s]: those of which some layer would have chosen another set; filled in


class SelectionCounts:
    """Counted over the layers of a rank."""

    def __init__(self, device: torch.device) -> None:
        # Replayed, recomputed, wrong, compared positions, of these not the indexer's.
        self._sums = torch.zeros(5, dtype=torch.int64, device=device)

    def tokens(self, recomputed: bool, count: int, wrong: Tensor | int) -> None:
        """Tokens of a call that were to attend to what was given, and those that did otherwise."""
        self._sums[int(recomputed)] += count
        self._sums[2] += wrong

    def compared(self, positions: int, missing: Tensor) -> None:
        """Given positions, and those of them that the indexer would not have chosen."""
        self._sums[3] += positions
        self._sums[4] += missing

    def clear(self) -> None:
        """Counting starts anew."""
        self._sums.zero_()

    def take(self) -> tuple[int, ...]:
        """Replayed, recomputed, wrong, compared, missing."""
        return tuple(self._sums.tolist())


@dataclass(frozen=True)
class _Told:
    """Where a call's choice comes from."""

    make: Positions
    given: bool  # and not the layer's whose choice it shares


class ReplayedSelection:
    """Of one layer. `give` before each forward pass; recomputation goes where its forward pass went."""

    def __init__(self, recomputes: bool) -> None:
        self.counts: SelectionCounts | None = None
        self._recomputes = recomputes
        self._source: ReplayedSelection | None = None
        self._followed = False
        self._latest: Tensor | None = None  # of a layer that others follow: what its indexer chose last
        self._next: _Told | None = None
        self._to_recompute: list[_Told] = []
        self._records: dict[ReplayedSelection, Tensor] | None = None
        self._comparison: Comparison | None = None
        # Of the call in progress: what was given to it, and whether it recomputes.
        self._call: tuple[Tensor, bool] | None = None

    def follow(self, source: ReplayedSelection) -> None:
        """The layer has no indexer: where nothing is given it attends to what `source`'s chose in the same pass."""
        self._source, source._followed = source, True

    def give(self, positions: Positions, comparison: Comparison | None = None) -> None:
        """What the coming forward pass attends to, and with whose own choices it is compared."""
        self._records, self._comparison = None, comparison
        self._next = _Told(positions, given=True)

    def record(self, into: dict[ReplayedSelection, Tensor]) -> None:
        """In the coming forward pass the indexer chooses; its choice goes `into[self]`."""
        self.choose()
        self._records = into

    def choose(self) -> None:
        """The coming forward pass is the indexer's."""
        self._next = self._records = self._comparison = None

    def forget(self) -> None:
        """The pass over the micro-batches is over."""
        self.choose()
        self._latest = self._call = None
        self._to_recompute.clear()

    @property
    def wants_choice(self) -> bool:
        """Whether `chosen` is to be told what the indexer chooses."""
        return self._records is not None or self._followed

    def begin(self) -> Tensor | None:
        """The call's tokens, int64 [b, s, K]; None: the indexer chooses."""
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
        """What the indexer chose in the call."""
        if self._records is not None:
            self._records[self] = positions
        if self._followed:
            self._latest = positions

    def attended(self, positions: Tensor | None) -> None:
        """What attention was computed with in the call, int64 [b, s, K]; None: it is over. Counts the tokens for which
        that is not what was given."""
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
        """Whether the call in progress wants to know what the indexer would have chosen."""
        return self._comparison is not None and self._call is not None and not self._call[1]

    def compare(self, own: Tensor) -> None:
        """What the indexer would have chosen in the call, int [b, s, up to K]."""
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
    """Which of `told` [t, K] are not in their row of `mine` [t, K']: bool [t, K]."""
    ordered = mine.sort(1).values.contiguous()
    places = torch.searchsorted(ordered, told.contiguous()).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, places) != told
