"""The limits that a hook sets itself, besides those of the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may use, and what its value is if its process was lost with it."""

    cpu_s: float | None = None  # seconds of CPU time; unlike the deadline, a busy node does not shorten them
    lost: float | None = None  # the value of a call that used more, that hung, or whose process died
    imports: tuple[str, ...] = ()  # packages to import beforehand, so that no call spends its time on it


def limited[F: Callable[..., Any]](
    *, cpu_s: float | None = None, lost: float | None = None, imports: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Decorator that sets a hook's own limits."""

    def mark(function: F) -> F:
        function.limits = Limits(cpu_s=cpu_s, lost=lost, imports=imports)  # type: ignore[attr-defined]
        return function

    return mark


def limits_of(function: Any) -> Limits:
    """The limits that a function has set itself."""
    found = getattr(function, "limits", None)
    return found if isinstance(found, Limits) else Limits()
