"""Group filters: `fn(group) -> bool`. A finished group is dropped, before it is pushed, if the filter returns False."""

from __future__ import annotations

from verst.runtime.messages.sample import Group


def nonzero_std(group: Group) -> bool:
    """Keeps groups whose rewards differ. In other groups every advantage is zero (DAPO, arXiv:2503.14476)."""
    return len({sample.reward for sample in group.samples}) > 1
