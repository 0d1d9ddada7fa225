"""A recipe as a list of dotted keys, to compare it with another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_TEXT = 200


def flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("algorithm.steps", 4) for `algorithm: {steps: 4}`."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def told(recipe: Mapping[str, Any], key: str) -> str:
    """A key's value for people."""
    if key not in recipe:
        return "not set"
    value = recipe[key]
    return "null" if value is None else str(value)[:_TEXT]
