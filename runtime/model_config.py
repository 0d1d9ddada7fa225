"""The recipe's `model` section: which Hugging Face folder, which family, which precision."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ModelConfig(BaseModel):
    """The model that is trained and served."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="a local Hugging Face folder, or a hub id where a hub can be reached")
    family: str | None = Field(
        None, description="dotted path to a Family (`pkg.module:NAME`); by default chosen by `architectures`"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
