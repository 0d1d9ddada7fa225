"""The type of a recipe's stop strings."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _stop(value: list[str]) -> list[str]:
    if "" in value:  # it is at the end of every text: each answer would end after a token
        raise ValueError("an empty string would end every answer after a token; leave it out")
    return value


StopStrings = Annotated[list[str], AfterValidator(_stop)]
