"""Loads a tokenizer for a check, and tells why where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verst.launcher.recipe.faults import Fault
from verst.runtime.data.tokenizer import load_tokenizer


def tokenizer_or_fault(place: str, written: str, folder: Path) -> tuple[Any, list[Fault]]:
    """The tokenizer in `folder`, which the recipe's key `place` has as `written`; or None, and the fault."""
    try:
        return load_tokenizer(folder), []
    except Exception as error:  # transformers raises whatever its readers of many formats raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, [Fault(place, f"is {written!r}: its tokenizer cannot be loaded: {lines[0]}")]
