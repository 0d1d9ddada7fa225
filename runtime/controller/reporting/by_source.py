"""The figures of a step by source of prompts (`data.train.sources`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verst.runtime.messages.sample import GroupMeta


def by_source(groups: Sequence[GroupMeta], dropped: Mapping[str, int]) -> dict[str, Any]:
    """`{"sources": {name: {figure: value}}}`; empty for the groups of a single file.

    `dropped`: how many groups of each source were dropped. A source without a group in the step has `share` and
    `dropped` alone.
    """
    names = sorted({group.source for group in groups} | dropped.keys())
    if not any(names):
        return {}
    return {"sources": {name: _figures(name, groups, dropped.get(name, 0)) for name in names}}


def _figures(name: str, groups: Sequence[GroupMeta], dropped: int) -> dict[str, float]:
    mine = [group for group in groups if group.source == name]
    figures: dict[str, float] = {"share": len(mine) / len(groups), "dropped": dropped}
    if mine:
        rewards = [reward for group in mine for reward in group.rewards]
        lengths = [tokens for group in mine for tokens in group.trained_tokens]
        cut = [truncated for group in mine for truncated in group.truncated]
        figures |= {
            "reward": sum(rewards) / len(rewards),
            "solved_groups": sum(min(group.rewards) == max(group.rewards) for group in mine) / len(mine),
            "response_length": sum(lengths) / len(lengths),
            "truncated": sum(cut) / len(cut),
        }
    return figures
