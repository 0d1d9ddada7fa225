"""The recipe's `data` section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PromptFileConfig(BaseModel):
    """A JSONL or parquet file of prompts. A prompt is a string or a list of chat messages."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        description="a file of prompts, one a row: .jsonl, .json (one object a line) or .parquet"
    )
    prompt_key: str = Field("prompt", description="name of the column with the prompt")
    label_key: str | None = Field(
        "label", description="name of the column that the reward gets as `label`; null: there is none"
    )
    chat_template: bool = Field(
        True, description="whether to render the prompt with the tokenizer's chat template"
    )
    system: str | None = Field(None, description="a system message to put before every prompt")
    max_prompt_tokens: int = Field(
        4096, ge=1, description="longest prompt in tokens, as rendered; longer rows are left out"
    )
    shuffle: bool = Field(
        True,
        description="whether to shuffle the rows anew for each pass, by algorithm.seed; false: file order",
    )


class EvalConfig(PromptFileConfig):
    """Held-out prompts, which are answered before, during and after training."""

    interval: int | None = Field(
        None,
        ge=1,
        description="steps between evaluations during training; there is always one before and one after",
    )
    samples_per_prompt: int = Field(
        1, ge=1, description="answers to each row; the score is their mean reward"
    )
    temperature: float = Field(0.0, ge=0, description="sampling temperature; 0 is greedy")
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: the probability mass to keep; 1: off"
    )
    top_k: int = Field(-1, description="number of likeliest tokens to sample from; -1: all of them")
    min_p: float = Field(
        0.0, ge=0, le=1, description="smallest probability to keep, relative to the likeliest token's; 0: off"
    )
    shuffle: bool = Field(False, description="has no effect: an evaluation answers every row")


class DataConfig(BaseModel):
    """The files that prompts come from."""

    model_config = ConfigDict(extra="forbid")

    train: PromptFileConfig
    eval: EvalConfig | None = Field(None, description="held-out prompts; without them there is no evaluation")
