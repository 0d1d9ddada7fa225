"""Checks the arguments that a recipe gives a bundled reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from verst.runtime.hooks.preparation import checks_arguments


def typed[F: Callable[..., Any]](check: Callable[..., object] | None = None) -> Callable[[F], F]:
    """Decorator: arguments must be of the types that the function's annotations name.

    `check` then gets all arguments, those that the recipe leaves out as they are by default, and raises ValueError.
    """

    def mark(function: F) -> F:
        def checked(**given: Any) -> None:
            types = get_type_hints(function)
            for name, value in given.items():
                try:
                    msgspec.convert(value, types[name])
                except msgspec.ValidationError as error:
                    raise ValueError(f"{name} is {value!r}: {error}") from None
            if check is not None:
                usual = inspect.signature(function).parameters.values()
                check(**{p.name: p.default for p in usual if p.kind is p.KEYWORD_ONLY} | given)

        return checks_arguments(checked)(function)

    return mark
