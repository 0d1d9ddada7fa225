"""How a recipe names a reward of several parts."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class RewardPart(BaseModel):
    """One of the functions whose weighted sum is the reward."""

    model_config = ConfigDict(extra="forbid")

    function: str = Field(
        description="the dotted path of a function `fn(answer: Answer) -> float | Score`, plain or async"
    )
    weight: float = Field(1.0, allow_inf_nan=False, description="the factor of its value in the sum")
    name: str | None = Field(
        None,
        description="the part of the score under which its value is reported, as `scores/NAME`; by default the "
        "function's name",
    )
    arguments: dict[str, Any] = Field({}, description="keyword arguments that the function gets in each call")

    @property
    def label(self) -> str:
        """The name of the part."""
        return self.name or self.function.rpartition(":")[2]


def _sound(parts: list[RewardPart]) -> list[RewardPart]:
    if not parts:
        raise ValueError("name at least one function")
    labels = [part.label for part in parts]
    for label in labels:
        if not _NAME.fullmatch(label):
            raise ValueError(
                f"the name {label!r} must be letters, digits and _ . - (at most 60); give `name`"
            )
        if labels.count(label) > 1:
            raise ValueError(f"two parts have the name {label!r}; give them a `name` each")
    return parts


RewardParts = Annotated[list[RewardPart], AfterValidator(_sound)]


def parts_of(reward: str | list[RewardPart]) -> list[RewardPart]:
    """The parts of a reward; a single function is one."""
    return [RewardPart(function=reward)] if isinstance(reward, str) else reward
