"""What a hook checks before its first call: its keyword arguments, and whether this machine has what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def checks_arguments[F: Callable[..., Any]](check: Callable[..., object]) -> Callable[[F], F]:
    """Decorator: `check(**arguments)` raises ValueError for keyword arguments that the hook cannot use.

    `verst plan` calls it, and each process before its first call.
    """

    def mark(function: F) -> F:
        function.check_arguments = check  # type: ignore[attr-defined]
        return function

    return mark


def prepared_by[F: Callable[..., Any]](start: Callable[..., object]) -> Callable[[F], F]:
    """Decorator: `start(**arguments)` is called once in each process of the hook, before its first call.

    What it raises ends the run at its start. `verst plan` does not call it: the machine is another one.
    """

    def mark(function: F) -> F:
        function.start = start  # type: ignore[attr-defined]
        return function

    return mark


def argument_fault(function: Any, keywords: Mapping[str, Any]) -> str | None:
    """What is wrong with the keyword arguments that a recipe gives a hook of one argument; None if nothing is."""
    try:
        inspect.signature(function).bind(None, **keywords)
        if (check := getattr(function, "check_arguments", None)) is not None:
            check(**keywords)
    except (ValueError, TypeError) as error:
        return str(error)
    return None


def prepare(function: Any, keywords: Mapping[str, Any]) -> None:
    """Checks the keyword arguments of a hook and lets it prepare itself. Raises ValueError, or what the hook raises."""
    if keywords and (fault := argument_fault(function, keywords)):
        raise ValueError(f"its arguments: {fault}")
    if (start := getattr(function, "start", None)) is not None:
        start(**keywords)
