"""How IFEval compares a count with a bound."""

from __future__ import annotations

from typing import Literal

Relation = Literal["at least", "less than"]


def holds(count: int, relation: Relation, bound: int) -> bool:
    """Whether a count is "at least" or "less than" a bound."""
    return count >= bound if relation == "at least" else count < bound
