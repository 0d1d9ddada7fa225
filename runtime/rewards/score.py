"""Calls a reward function, with a deadline, and checks that it returns a finite number."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from typing import Any

from verst.runtime.hooks.dotted import load_function


class RewardError(RuntimeError):
    """A reward function raised, took too long, or returned something that is not a finite number."""


class RewardFunction:
    """A reward function, loaded from its dotted path. Raises DottedPathError if `path` names no function."""

    def __init__(self, path: str, timeout_s: float = 60) -> None:
        self.path = path
        self._function = load_function(path, "reward function")
        self._timeout_s = timeout_s

    async def score(
        self, response: str, label: Any, metadata: dict[str, Any], *, group: int, index: int
    ) -> float:
        """Returns the reward of sample `index` of `group`. Raises RewardError with function, sample and value."""
        where = f"reward function {self.path!r}, sample {index} of group {group}"
        try:
            value = await asyncio.wait_for(self._call(response, label, metadata), self._timeout_s)
        except TimeoutError as error:
            raise RewardError(f"{where}: no value after {self._timeout_s:.0f} s") from error
        except Exception as error:  # a user's function may raise anything
            raise RewardError(f"{where}: raised {type(error).__name__}: {error}") from error
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise RewardError(f"{where}: returned {value!r}, not a finite number (label {label!r})")
        return float(value)

    async def _call(self, response: str, label: Any, metadata: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(response, label, metadata)
        value = await asyncio.to_thread(self._function, response, label, metadata)
        return await value if inspect.isawaitable(value) else value
