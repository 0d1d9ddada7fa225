"""Checks the values that hooks return. Each check returns the value in its proper type, or raises ValueError."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

from verst.runtime.hooks.frames import shown
from verst.runtime.hooks.score import Score

_LARGEST_REWARD = 1e30
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_NAMES = "letters, digits, and _ . - , at most 60 of them"
# Why Verst itself drops a group.
OWN_REASONS = frozenset(["stale", "too_long", "masked", "reward_failed", "sample_filter"])
_LARGEST_FLOAT32 = 3.4028234e38


def finite_number(value: Any) -> float:
    """A Python or numpy number or bool, or a Decimal, which is finite as a float."""
    plain = _plain(value)
    if not isinstance(plain, numbers.Real | Decimal):
        raise ValueError(f"returned {shown(value)}, not a finite number")
    try:
        number = float(plain)
    except OverflowError:
        raise ValueError(f"returned {_large(value)}, too large for a float") from None
    if not math.isfinite(number):
        raise ValueError(f"returned {shown(value)}, not a finite number")
    return number


def reward_number(value: Any) -> float:
    """A finite number whose differences are finite in float32 too, as training computes advantages."""
    number = finite_number(value)
    if abs(number) > _LARGEST_REWARD:
        raise ValueError(
            f"returned {number:g}; a reward is at most {_LARGEST_REWARD:g} in size: training computes in float32"
        )
    return number


def score_of(value: Any) -> Score:
    """A reward: a number, or a `Score` whose parts are numbers with names."""
    if not isinstance(value, Score):
        return Score(reward_number(value))
    if not isinstance(value.parts, Mapping):
        raise ValueError(f"returned a Score with {shown(value.parts)} as parts, not a dict of numbers")
    parts = {}
    for name, part in value.parts.items():
        try:
            parts[checked_name("part", name)] = finite_number(part)
        except ValueError as error:
            raise ValueError(f"{error}, as the part {shown(name)} of the score") from None
    return Score(reward_number(value.value), parts)


def scores_of(count: int) -> Callable[[Any], list[Score]]:
    """The check of the rewards of a prompt's `count` answers: a sequence of numbers or `Score`s, one for each."""

    def check(value: Any) -> list[Score]:
        listed = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(listed, list | tuple):
            raise ValueError(f"returned {shown(value)}, not a list of one reward for each answer")
        if len(listed) != count:
            raise ValueError(f"returned {len(listed)} rewards for {count} answers")
        return [score_of(each) for each in listed]

    return check


def checked_name(what: str, name: Any) -> str:
    """A name of a figure. Raises ValueError if it is none; `what` says of what, in the message."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"returned a {what} of the name {shown(name)}; {_NAMES}")
    return name


def figures_of(taken: Mapping[str, float]) -> Callable[[Any], dict[str, float]]:
    """The check of figures by name. `taken`: figures that there are already, whose names cannot be used."""

    def check(value: Any) -> dict[str, float]:
        if not isinstance(value, Mapping):
            raise ValueError(f"returned {shown(value)}, not a dict of numbers")
        figures = {}
        for name, number in value.items():
            checked_name("figure", name)
            if name in taken:
                raise ValueError(f"returned a figure {name!r}, which the step has already: use another name")
            try:
                figures[name] = finite_number(number)
            except ValueError as error:
                raise ValueError(f"{error}, as the figure {name!r}") from None
        return figures

    return check


class Decision(NamedTuple):
    """What a filter says about a group, and why it is dropped."""

    kept: bool
    reason: str = "filter"


def keep_or_drop(value: Any) -> Decision:
    """A filter's decision: a Python or numpy bool, or one with a reason. Anything else is a mistake.

    None would drop every group.
    """
    decision, reason = value if isinstance(value, tuple) and len(value) == 2 else (value, "filter")
    plain = _plain(decision)
    if not isinstance(plain, bool):
        raise ValueError(
            f"returned {shown(value)}, neither True nor False nor one of them with a reason, such as "
            '(False, "too_easy")'
        )
    if not isinstance(reason, str) or not _NAME.fullmatch(reason):
        raise ValueError(f"returned {shown(value)}; a reason is a short name: {_NAMES}")
    if reason == "all" or reason in OWN_REASONS:
        raise ValueError(
            f"returned {shown(value)}; Verst counts its own drops under {reason!r}: use another word"
        )
    return Decision(plain, reason)


def decisions_of(count: int) -> Callable[[Any], list[Decision]]:
    """The check of a filter of `count` samples: a decision as `keep_or_drop` takes it, for each."""

    def check(value: Any) -> list[Decision]:
        plain = _as_list(value)
        if plain is None:
            raise ValueError(f"returned {shown(value)}, not a list with an entry for each sample")
        if len(plain) != count:
            raise ValueError(f"returned {len(plain)} entries for {count} samples: {shown(value)}")
        found = []
        for place, entry in enumerate(plain):
            try:
                found.append(keep_or_drop(entry))
            except ValueError as error:
                raise ValueError(f"{error}, at place {place}") from None
        return found

    return check


class HasRewards(Protocol):
    """A prompt group, as the check of advantages sees it."""

    @property
    def id(self) -> int: ...
    @property
    def rewards(self) -> Sequence[float]: ...


class HasTokens(HasRewards, Protocol):
    """A prompt group, as the check of weights sees it."""

    @property
    def trained_tokens(self) -> Sequence[int]: ...


_PER_GROUP = (
    "; `verst.runtime.algorithms.advantages:per_group` makes one of a function of one group's rewards"
)
# Weights that add up to one in float64 may be above it by rounding; those that were computed in float32 by more.
_ROUNDING = 1e-5


def advantages_of(groups: Sequence[HasRewards]) -> Callable[[Any], list[list[float]]]:
    """The check of a step's advantages: for each group as many finite numbers as it has rewards."""

    return lambda value: _of_groups(groups, value, _PER_GROUP)


def token_weights_of(groups: Sequence[HasTokens]) -> Callable[[Any], list[list[float]]]:
    """The check of the weights of a term: for each group one for each sample, the weight of each of its trained tokens.

    They are finite, not below 0, and over all trained tokens of `groups` they add up to 1 or less, and to more than 0.
    """

    def check(value: Any) -> list[list[float]]:
        weights = _of_groups(groups, value, "")
        total = 0.0
        for group, row in zip(groups, weights, strict=True):
            for place, (weight, tokens) in enumerate(zip(row, group.trained_tokens, strict=True)):
                if weight < 0:
                    raise ValueError(f"returned {weight:g}, below 0, at place {place} of group {group.id}")
                total += weight * tokens
        if not 0 < total <= 1 + _ROUNDING:
            raise ValueError(
                f"returned weights that add up to {total:g} over all trained tokens; they must add up to 1 or less, "
                "and to more than 0. A weight is that of each token, not that of the whole sample"
            )
        return weights

    return check


def _of_groups(groups: Sequence[HasRewards], value: Any, hint: str) -> list[list[float]]:
    """For each group as many numbers as it has rewards. `hint` says what to do about a number for a group."""
    plain = _as_list(value)
    if plain is None:
        raise ValueError(f"returned {shown(value)}, not a list of {len(groups)} lists, one for each group")
    if len(plain) != len(groups):
        many = "value" if len(plain) == 1 else "values"
        raise ValueError(f"returned {len(plain)} {many} for {len(groups)} groups: {shown(value)}")
    return [_of_group(group, entry, hint) for group, entry in zip(groups, plain, strict=True)]


def _of_group(group: HasRewards, value: Any, hint: str) -> list[float]:
    rewards = group.rewards
    plain = _as_list(value)
    if plain is None:
        raise ValueError(
            f"returned {shown(value)} for group {group.id}, not a list of {len(rewards)} numbers, one for each "
            f"sample{hint}"
        )
    if len(plain) != len(rewards):
        many = "value" if len(plain) == 1 else "values"
        raise ValueError(
            f"returned {len(plain)} {many} for the {len(rewards)} rewards of group {group.id}: {shown(value)}"
        )
    found = []
    for place, entry in enumerate(plain):
        try:
            found.append(_in_float32(finite_number(entry)))
        except ValueError as error:
            raise ValueError(
                f"{error}, at place {place} of group {group.id}; the rewards are {shown(list(rewards))}"
            ) from None
    return found


def _as_list(value: Any) -> Sequence[Any] | None:
    """A list, tuple or array as a sequence; None for anything else."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(plain, str | bytes) or not isinstance(plain, Sequence) else plain


def _in_float32(number: float) -> float:
    if abs(number) > _LARGEST_FLOAT32:
        raise ValueError(f"returned {number:g}, too large for float32, in which training computes")
    return number


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's own; other values as they are. Does not import numpy."""
    scalar = any(base.__module__ == "numpy" and base.__name__ == "generic" for base in type(value).__mro__)
    return value.item() if scalar else value


def _large(value: Any) -> str:
    digits = int(abs(int(value)).bit_length() * math.log10(2)) + 1
    return f"an integer of about {digits} digits"
