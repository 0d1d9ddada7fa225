"""Group filters: `fn(group) -> bool`. A finished group is dropped, before it is pushed, if the filter returns False."""

from __future__ import annotations

from collections.abc import Callable

from verst.runtime.messages.sample import Group


def nonzero_std(group: Group) -> bool:
    """Keeps groups whose rewards differ. In other groups every advantage is zero (DAPO, arXiv:2503.14476)."""
    return len({sample.reward for sample in group.samples}) > 1


def not_truncated(group: Group) -> tuple[bool, str]:
    """Keeps groups of which no answer was cut off at a limit of length; the others count as `truncated`."""
    return all(sample.finish != "length" for sample in group.samples), "truncated"


def pass_rate_between(low: float, high: float) -> Callable[[Group], tuple[bool, str]]:
    """Makes a filter that keeps groups whose mean reward, of each episode once, is from `low` to `high`.

    The others count as `too_hard` and `too_easy`. Name the result in a module of your own:
    `balanced = pass_rate_between(0.1, 0.9)`.
    """
    if not low <= high:
        raise ValueError(f"low is {low}, above high, which is {high}")

    def keep(group: Group) -> tuple[bool, str]:
        rewards = group.meta(0).by_episode().rewards
        rate = sum(rewards) / len(rewards)
        return low <= rate <= high, "too_hard" if rate < low else "too_easy"

    return keep
