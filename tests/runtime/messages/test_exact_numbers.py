"""Numbers that neither JSON nor messages can hold pass through a data file unchanged."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import pytest

from verst.runtime.actors.codec import decode, encode
from verst.runtime.messages.exact_numbers import kept, restored


def test_fractions_and_long_integers_survive_a_file_and_a_message():
    value = {
        "a": Fraction(3, 4),
        "b": [10**20, -(10**20), 7, 2**63, -(2**63)],
        "c": Decimal("0.10"),
        "d": {"e": True},
    }
    row = json.loads(json.dumps(kept(value, "task: metadata")))
    there = decode(dict, encode(row))
    back = restored(there)
    assert back == value
    assert [type(v) for v in (back["a"], back["b"][0], back["c"], back["d"]["e"])] == [
        Fraction,
        int,
        Decimal,
        bool,
    ]


def test_what_has_no_such_form_is_told_with_its_place():
    with pytest.raises(ValueError, match=r"task: metadata.grid\[1\] is a set, which JSON cannot hold: \{3\}"):
        kept({"grid": [1, {3}]}, "task: metadata")
