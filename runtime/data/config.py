"""The recipe's `data` section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PromptFileConfig(BaseModel):
    """A JSONL or parquet file of prompts. A prompt is a string or a list of chat messages."""

    model_config = ConfigDict(extra="forbid")

    path: str
    prompt_key: str = "prompt"
    label_key: str | None = "label"
    chat_template: bool = Field(
        True, description="whether to render the prompt with the tokenizer's chat template"
    )
    system: str | None = Field(None, description="a system message to put before every prompt")
    max_prompt_tokens: int = Field(4096, ge=1)
    shuffle: bool = True


class EvalConfig(PromptFileConfig):
    """Held-out prompts, which are answered before, during and after training."""

    interval: int | None = Field(
        None,
        ge=1,
        description="steps between evaluations during training; there is always one before and one after",
    )
    samples_per_prompt: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    shuffle: bool = False


class DataConfig(BaseModel):
    """The files that prompts come from."""

    model_config = ConfigDict(extra="forbid")

    train: PromptFileConfig
    eval: EvalConfig | None = None
