"""Checks the labels of rows with the reward's own check.

A reward function may have an attribute `label_fault(label) -> str | None`: what is wrong with a label that it could not
compare an answer with, or None. The bundled rewards have one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from verst.runtime.data.prompts import Row
from verst.runtime.hooks.dotted import load_function


class LabelCheck:
    """Looks at the labels of one file after the other."""

    def __init__(self, reward: str, check: Callable[[Any], str | None] | None) -> None:
        """`reward` is the dotted path of the function that `check` belongs to."""
        self._reward = reward
        self._check = check
        self.begin()

    @staticmethod
    def of(reward: str) -> LabelCheck:
        """The check of the reward at this dotted path. Imports only a module that may have one."""
        if not _may_have_one(reward.partition(":")[0]):
            return LabelCheck(reward, None)
        try:
            function = load_function(reward, "reward function")
        except Exception:  # a module may raise anything; the check of hooks tells it
            return LabelCheck(reward, None)
        return LabelCheck(reward, getattr(function, "label_fault", None))

    def begin(self) -> None:
        """Begins with a file."""
        self._first = ""
        self._others = 0

    def look(self, row: Row) -> None:
        """Looks at the label of a row."""
        if self._check is None:
            return
        try:
            fault = self._check(row.label)
        except Exception as error:  # a user's function may raise anything
            fault = f"its label_fault raised {type(error).__name__}: {error}"
        if fault and self._first:
            self._others += 1
        elif fault:
            self._first = f"{row.where}: the reward {self._reward} can't use the label {row.label!r}: {fault}"

    @property
    def fault(self) -> str:
        """The fault of the file's first wrong label, and how many more there are; empty if there is none."""
        return self._first + (f" (and {self._others:,} more rows)" if self._others else "")


def _may_have_one(module: str) -> bool:
    if module.startswith("verst."):
        return True
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return False
    source = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    return "label_fault" in source or "verst.runtime.rewards" in source
