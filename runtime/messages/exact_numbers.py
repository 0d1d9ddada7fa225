"""Numbers that neither JSON files nor messages between processes can hold exactly, as text, and back.

JSON has no fractions, and messages have integers of 64 bits only.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

_TAG = "exact_number"  # {"exact_number": "Fraction", "text": "3/4"}
_KINDS = {"Fraction": Fraction, "Decimal": Decimal, "int": int}


def kept(value: Any, place: str) -> Any:
    """`value` as JSON can hold it. `place` is for messages. Raises ValueError for types that have no such form."""
    if isinstance(value, dict):
        return {str(key): kept(inner, f"{place}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [kept(inner, f"{place}[{number}]") for number, inner in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return {_TAG: "int", "text": str(value)}
    if isinstance(value, Fraction | Decimal):
        return {_TAG: type(value).__name__, "text": str(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy
        return kept(value.item(), place)
    raise ValueError(f"{place} is a {type(value).__name__}, which JSON cannot hold: {value!r:.80}")


def restored(value: Any) -> Any:
    """The inverse of `kept`, except that tuples stay lists and keys stay strings."""
    if isinstance(value, dict):
        if value.keys() == {_TAG, "text"} and value[_TAG] in _KINDS:
            return _KINDS[value[_TAG]](value["text"])
        return {key: restored(inner) for key, inner in value.items()}
    return [restored(inner) for inner in value] if isinstance(value, list) else value
