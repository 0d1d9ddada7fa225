"""The recipe's settings of the model that is trained and served, which trainer and engines both read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# The value of a Megatron or SGLang argument in YAML; `true` stands for a flag without a value.
ArgumentValue = bool | int | float | str | list[int | float | str]


class ModelConfig(BaseModel):
    """The model that is trained and served."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="a local Hugging Face folder, or a hub id where a hub can be reached")
    family: str | None = Field(
        None,
        description="dotted path of the model's Family (`pkg.module:NAME`); by default chosen by "
        "`architectures` in its config.json",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="number format of the trained weights; engines serve it unless rollout.model_path is set. float32 "
        "is for CPUs: SGLang's kernels do not take it on a GPU",
    )


class EngineModel(BaseModel):
    """The part of the recipe's `rollout` section that the trainer needs too: the engines' model."""

    model_path: str | None = Field(
        None,
        description="the folder that the engines load: the model of model.path in another format, made by "
        "`verst convert`. Each weight sync converts to the format in its config.json. By default model.path",
    )
