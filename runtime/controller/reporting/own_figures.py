"""The user's own figures of a step: what generate functions and filters put under "figures" in a sample's metadata."""

from __future__ import annotations

from collections.abc import Sequence

from verst.runtime.messages.sample import GroupMeta


def own_figures(groups: Sequence[GroupMeta]) -> dict[str, dict[str, float]]:
    """`{"own": {name: mean}}` over the samples that have the figure; empty if none has any."""
    names = sorted({name for group in groups for name in group.figures})
    means = {}
    for name in names:
        sums = [group.figures[name] for group in groups if name in group.figures]
        means[name] = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return {"own": means} if means else {}
