"""A figure that a run writes, and what is to be known of it."""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """One figure, or several that begin alike."""

    key: str
    unit: str  # "" for a plain number or a word
    meaning: str
    hint: str = ""  # what it should do, or what to do about it
