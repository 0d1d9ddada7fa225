"""The user's own figures of a step, from their generate function, filter and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verst.runtime.messages.sample import GroupMeta

OF_A_LOSS = "own/"  # begins the names of those figures of the trainer that the user's own loss made


def own_figures(groups: Sequence[GroupMeta], metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """`{"own": {name: mean}}`; empty if there is none.

    Generate functions and filters put figures into a sample's metadata, under "figures": the mean is over the samples
    that have the figure. Those of a loss are among the trainer's `metrics`.
    """
    names = sorted({name for group in groups for name in group.figures})
    means = {k.removeprefix(OF_A_LOSS): v for k, v in metrics.items() if k.startswith(OF_A_LOSS)}
    for name in names:
        sums = [group.figures[name] for group in groups if name in group.figures]
        means[name] = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return {"own": means} if means else {}
