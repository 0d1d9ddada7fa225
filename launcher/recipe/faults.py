"""The errors that a user can put right.

Faults of a recipe are reported all at once, each with its place, its value and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One mistake in a recipe. `place` is its dotted key (`trainer.megatron.lr`), "" for the file as a whole."""

    place: str
    message: str
    where: str = ""  # its position, if that is not the key's


class UserError(Exception):
    """An error that the user can put right. Only its message is printed, no traceback."""


class RecipeError(UserError):
    """A recipe cannot run. `lines` has one line for each of its faults, ready to print; `remark` follows them."""

    def __init__(self, source: str, lines: list[str], remark: str = "") -> None:
        self.source = source
        self.lines = lines
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        said = [f"{source} has {count}:", *("  " + line for line in lines), *([remark] if remark else [])]
        super().__init__("\n".join(said))


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: " Did you mean `x`?", or the valid names if none is close and they are few."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" Valid here: {', '.join(names)}." if 0 < len(names) <= 20 else ""


def shown(value: object) -> str:
    """A value for a message: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
