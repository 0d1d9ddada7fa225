"""Rewards that compare the response, or its last number, with the label."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import LabelError
from verst.runtime.rewards.labels import checks_labels

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def _text_label(label: Any, metadata: dict[str, Any]) -> str:
    """The label of `exact` as a text. A list has one in Python's spelling, which no answer would equal."""
    if not isinstance(label, str | int | float):
        raise LabelError(f"the label {label!r} is neither a text nor a number; exact_match takes a list")
    return str(label).strip()


@checks_labels(_text_label)
def exact(answer: Answer) -> float:
    """1 if the response equals the label, apart from white space around them, else 0."""
    return float(answer.text.strip() == _text_label(answer.label, answer.metadata))


def _number_label(label: Any, metadata: dict[str, Any]) -> Decimal:
    """The label of `number` as a number."""
    written = str(label).replace(",", "").strip()
    try:
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            raise InvalidOperation
        value = Decimal(written)
        if not value.is_finite():
            raise InvalidOperation
    except InvalidOperation:
        raise LabelError(
            f"the label {label!r} is not a number such as 18, -0.5 or 1,000; rewards:math compares other values"
        ) from None
    return value


@checks_labels(_number_label)
def number(answer: Answer) -> float:
    """1 if the last number in the response equals the label, else 0. "3 + 4 = 7" gives 7; `1,000` is a thousand."""
    wanted = _number_label(answer.label, answer.metadata)
    found = NUMBER.findall(answer.text)
    return float(bool(found) and Decimal(found[-1].replace(",", "")) == wanted)
