"""Lets a reward say which labels it can use, so that `verst plan` finds the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from verst.runtime.hooks.errors import LabelError


def checks_labels[F: Callable[..., Any]](check: Callable[[Any, dict[str, Any]], object]) -> Callable[[F], F]:
    """Decorator that gives a reward its check of labels, which `verst plan` calls for the rows, for 20 s a file.

    `check(label, metadata)` raises LabelError for a label that the reward cannot use.
    """

    def mark(function: F) -> F:
        function.check_label = check  # type: ignore[attr-defined]
        return function

    return mark


def text_or_number(label: Any, metadata: dict[str, Any]) -> str:
    """The label as a text. Raises LabelError unless it is a number or a text that is not empty."""
    if isinstance(label, bool) or not isinstance(label, str | int | float) or not str(label).strip():
        raise LabelError(f"the label {label!r} is neither a text nor a number")
    return str(label)


def decoded(label: Any) -> Any:
    """A label as data; data files often have lists and objects as JSON in a text. Raises LabelError."""
    if not isinstance(label, str):
        return label
    try:
        return json.loads(label)
    except ValueError as error:
        raise LabelError(f"the label {label[:80]!r} is no JSON: {error}") from None
