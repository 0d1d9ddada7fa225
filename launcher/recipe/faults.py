"""What is wrong with a recipe: every fault at once, each with its place, value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing wrong. `place` is dotted (`trainer.megatron.lr`), "" for the file as a whole."""

    place: str
    message: str


class UserError(Exception):
    """What a person at the terminal can put right; its message is all they need to see."""


class RecipeError(UserError):
    """A recipe that cannot run, with all that is wrong with it; `lines` are ready to print."""

    def __init__(self, source: str, lines: list[str]) -> None:
        self.source = source
        self.lines = lines
        count = "1 fault" if len(lines) == 1 else f"{len(lines)} faults"
        super().__init__("\n".join([f"{source} has {count}:", *("  " + line for line in lines)]))


def nearest(name: str, valid: Iterable[str]) -> str:
    """ " Did you mean `x`?" when a valid name is close, else the valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" Valid here: {', '.join(names)}." if 0 < len(names) <= 20 else ""


def shown(value: object) -> str:
    """A value as it stands in a message, cut to a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
