"""Loads a model's tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a model folder. Raises what transformers raises: OSError, ValueError, or its readers' own.

    transformers imports sklearn, and with it scipy and pandas, for a kind of generation that nothing here uses. That
    takes a quarter of the time, so sklearn is not to be found meanwhile.
    """
    hidden = "sklearn" not in sys.modules
    if hidden:
        sys.modules["sklearn"] = None  # type: ignore[assignment]  # importing it fails at once
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)
    finally:
        if hidden:
            del sys.modules["sklearn"]
