"""Dropped prompt groups: why each was dropped, and when so many in a row are dropped that the run cannot go on."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.hooks.values import OWN_REASONS


class Drop(NamedTuple):
    """A group that will not be trained on."""

    id: int
    reason: str  # one of OWN_REASONS, "filter", or what the filter says
    detail: str = ""  # for people; "" if the reason says all
    reissued: bool = False  # whether its prompt is issued again, as another group


class Drops:
    """Counts the groups that were dropped since one was last kept."""

    def __init__(self, limit: int, filter: str | None) -> None:
        """`limit`: most groups that may be dropped in a row. `filter`: the recipe's filter, for messages."""
        self._limit = limit
        self._filter = filter
        self._in_a_row: Counter[str] = Counter()
        # A warning comes early, since each group costs its generation, and once more half-way.
        self._warn_at = {limit // 10, limit // 2} - {0}

    def kept(self) -> None:
        """A group was accepted, and can be trained on."""
        self._in_a_row.clear()

    def add(self, drop: Drop) -> ev.WarnDropped | None:
        """Counts a dropped group. Returns the warning that is due, if one is."""
        self._in_a_row[drop.reason] += 1
        if self._in_a_row.total() not in self._warn_at:
            return None
        return ev.WarnDropped(
            f"{self._told()}; the run ends after {self._limit} (rollout.max_dropped_in_a_row){self._named()}"
        )

    def too_many(self) -> str | None:
        """The reason to end the run if too many groups in a row were dropped, else None."""
        if self._in_a_row.total() <= self._limit:
            return None
        return f"{self._told()}, more than {self._limit} (rollout.max_dropped_in_a_row){self._named()}"

    def _told(self) -> str:
        counts = ", ".join(f"{reason} {count}" for reason, count in self._in_a_row.most_common())
        return f"{self._in_a_row.total()} prompt groups in a row were dropped ({counts})"

    def _named(self) -> str:
        of_filter = self._in_a_row.keys() - OWN_REASONS
        return f"; the filter is {self._filter}" if self._filter and of_filter else ""
