"""The recipe's `data` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from verst.runtime.messages.top_k import TopK


class PromptFileConfig(BaseModel):
    """A JSONL or parquet file of prompts. A prompt is a string or a list of chat messages."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        description="a file of prompts, one a row: .jsonl, .json (one object a line) or .parquet"
    )
    prompt_key: str = Field(
        "prompt", description="name of the column with the prompt; `a.b` is the key `b` of the object `a`"
    )
    label_key: str | None = Field(
        "label",
        description="name of the column that the reward gets as `label`, or a path such as "
        "`reward_model.ground_truth`; null: there is none",
    )
    tools_key: str | None = Field(
        "tools",
        description="name of the column with the tools that the chat template tells the model; rows may lack it",
    )
    chat_template: bool = Field(
        True, description="whether to render the prompt with the tokenizer's chat template"
    )
    chat_template_file: str | None = Field(
        None, description="a file with the chat template to use instead of the tokenizer's"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the chat template, such as `{enable_thinking: false}`",
    )
    final_assistant: Literal["refuse", "continue", "drop"] = Field(
        "refuse",
        description="what to do with a prompt whose last message is the assistant's. continue: the model continues "
        "it; drop: it is left out",
    )
    system: str | None = Field(None, description="a system message to put before every prompt")
    max_prompt_tokens: int = Field(
        4096, ge=1, description="longest prompt in tokens, as rendered; longer rows are left out"
    )


class TrainFileConfig(PromptFileConfig):
    """The prompts of training."""

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
    temperature: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="sampling temperature; 0 is greedy"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: the probability mass to keep; 1: off"
    )
    top_k: TopK = Field(-1, description="number of likeliest tokens to sample from; -1: all of them")
    min_p: float = Field(
        0.0, ge=0, le=1, description="smallest probability to keep, relative to the likeliest token's; 0: off"
    )


class DataConfig(BaseModel):
    """The files that prompts come from."""

    model_config = ConfigDict(extra="forbid")

    train: TrainFileConfig
    eval: EvalConfig | None = Field(None, description="held-out prompts; without them there is no evaluation")
    accept_changes: bool = Field(
        False,
        description="whether a resumed run goes on when its rows are no longer those it began with; false: it ends and "
        "says what changed",
    )
