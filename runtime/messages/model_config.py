"""Which model a run trains and which its engines load. Both the trainer and the engines read this."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# A Megatron or SGLang argument's value as YAML writes it; `true` stands for a bare flag.
ArgumentValue = bool | int | float | str | list[int | float | str]


class ModelConfig(BaseModel):
    """The model that is trained and served."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="a local Hugging Face folder, or a hub id where a hub can be reached")
    family: str | None = Field(
        None, description="dotted path to a Family (`pkg.module:NAME`); by default chosen by `architectures`"
    )
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class EngineModel(BaseModel):
    """The part of the recipe's `rollout` section that the trainer needs too: what the engines load."""

    model_path: str | None = Field(
        None,
        description="the folder that engines load, by default model.path: that model in another format, made by "
        "`verst convert`. Its config.json says what each weight sync converts to",
    )
