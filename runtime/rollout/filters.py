"""Decides which finished groups are dropped before they are pushed.

A group filter of the recipe is a function `fn(group) -> bool`. The group is dropped if it returns False. `too_long` is
not the recipe's to choose: the trainer cannot take such a group.
"""

from __future__ import annotations

from verst.runtime.messages.sample import Group


def nonzero_std(group: Group) -> bool:
    """Keeps groups whose rewards differ. In other groups every advantage is zero (DAPO, arXiv:2503.14476)."""
    return len({sample.reward for sample in group.samples}) > 1


def too_long(group: Group, max_tokens: int | None) -> str | None:
    """Says which sample is longer than `max_tokens`, prompt included; None if none is, or without a limit."""
    longest = max(group.samples, key=lambda sample: sample.length)
    if max_tokens is None or longest.length <= max_tokens:
        return None
    return (
        f"sample {longest.index} has {longest.length} tokens; the trainer takes {max_tokens} "
        "(trainer.max_tokens_per_microbatch, less padding)"
    )
