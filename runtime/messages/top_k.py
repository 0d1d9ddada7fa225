"""The type of `top_k`, which training and evaluation have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _top_k(value: int) -> int:
    if value < 1 and value != -1:  # SGLang refuses each request
        raise ValueError("must be at least 1, or -1 for all tokens")
    return value


TopK = Annotated[int, AfterValidator(_top_k)]
