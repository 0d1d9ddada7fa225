"""The user's own figures of a step, from their generate function, filter and loss, and the parts of their reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from verst.runtime.messages.sample import GroupMeta

OF_A_LOSS = "own/"  # begins the names of those figures of the trainer that the user's own loss made


def own_figures(groups: Sequence[GroupMeta], metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """`{"own": {name: mean}}`; empty if there is none.

    Generate functions and filters put figures into a sample's metadata, under "figures": the mean is over the samples
    that have the figure. Those of a loss are among the trainer's `metrics`; one that samples have too is `loss_NAME`.
    """
    names = sorted({name for group in groups for name in group.figures})
    of_loss = {k.removeprefix(OF_A_LOSS): v for k, v in metrics.items() if k.startswith(OF_A_LOSS)}
    means = {f"loss_{name}" if name in names else name: value for name, value in of_loss.items()}
    for name in names:
        sums = [group.figures[name] for group in groups if name in group.figures]
        means[name] = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return {"own": means} if means else {}


def scores(groups: Sequence[GroupMeta]) -> dict[str, dict[str, float]]:
    """`{"scores": {name: mean}}`, the parts of the rewards over the samples that have the part; empty if none has."""
    found: dict[str, list[float]] = {}
    for group in groups:
        for name, values in group.scores.items():
            found.setdefault(name, []).extend(value for value in values if not math.isnan(value))
    return {"scores": {name: sum(v) / len(v) for name, v in sorted(found.items())}} if found else {}
