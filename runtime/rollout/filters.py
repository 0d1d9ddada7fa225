"""Group filters: `fn(group) -> bool`, False drops a finished group before it is pushed."""

from __future__ import annotations

from verst.runtime.messages.sample import Group


def nonzero_std(group: Group) -> bool:
    """Keeps groups whose rewards differ: in the others every advantage is zero (DAPO, arXiv:2503.14476)."""
    return len({sample.reward for sample in group.samples}) > 1
