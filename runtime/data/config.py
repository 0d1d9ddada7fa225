"""The recipe's `data` section."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_serializer, field_validator, model_validator

from verst.runtime.data.mixture import shares
from verst.runtime.messages.top_k import TopK

_PATH = (
    "the prompts, one a row: a file (.jsonl or .json, also .gz or .zst; .parquet, .arrow), a folder of such files or "
    "of `datasets`, a pattern such as `shards/*.jsonl`, or `module:Class`, a source of your own"
)
_SHUFFLE = "whether to shuffle the rows anew for each pass, by algorithm.seed; false: file order"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


class PromptStyle(BaseModel):
    """How the rows of a file become prompts. A prompt is a string or a list of chat messages."""

    model_config = ConfigDict(extra="forbid")

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


class PromptFileConfig(PromptStyle):
    """A file of prompts."""

    path: str = Field(description=_PATH)


class SourceConfig(PromptFileConfig):
    """One source of training prompts. Keys of `data.train` that it leaves out are those of `data.train`."""

    shuffle: bool = Field(True, description=_SHUFFLE)
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="share of this source in the prompts, relative to the weights of the others",
    )
    loss_weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="factor of the policy's loss of this source's tokens, KL and entropy terms included",
    )
    reward: str | None = Field(None, description="the reward of this source; by default `rollout.reward`")
    temperature: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="sampling temperature of this source; by default that of `rollout.sampling`",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer in tokens; by default that of `rollout.sampling`"
    )


class TrainConfig(PromptStyle):
    """The prompts of training: of one file, or of several sources. Give either `path` or `sources`."""

    path: str | None = Field(None, description=_PATH)
    shuffle: bool = Field(True, description=_SHUFFLE)
    sources: dict[str, SourceConfig] = Field(
        default_factory=dict, description="several sources of prompts by name, which are mixed by weight"
    )

    @field_validator("sources")
    @classmethod
    def _names(cls, value: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a source: letters, digits, '_' and '-', at most 40")
        if value:
            shares([source.weight for source in value.values()])
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.path is None) == (not self.sources):
            raise ValueError("give either path, for one file, or sources, for several")
        return self

    @field_serializer("sources")
    def _as_given(self, value: dict[str, SourceConfig]) -> dict[str, Any]:
        # A default that is written out would no longer be inherited from `data.train`.
        return {name: source.model_dump(mode="json", exclude_unset=True) for name, source in value.items()}

    def by_name(self) -> dict[str, SourceConfig]:
        """The sources by name, complete. A single file is a source with the name ""."""
        given = {key: getattr(self, key) for key in self.model_fields_set & SourceConfig.model_fields.keys()}
        if not self.sources:
            return {"": SourceConfig(**{"path": "", **given})}
        return {
            name: source.model_copy(
                update={key: value for key, value in given.items() if key not in source.model_fields_set}
            )
            for name, source in self.sources.items()
        }

    def longest_answer(self, usual: int) -> int:
        """The most tokens that an answer may have, whatever its source; `usual` is that of `rollout.sampling`."""
        return max(source.max_new_tokens or usual for source in self.by_name().values())

    def sections(self) -> dict[str, SourceConfig]:
        """The same by the recipe's key: `data.train`, or `data.train.sources.NAME` for each."""
        return {
            f"data.train.sources.{name}" if name else "data.train": s for name, s in self.by_name().items()
        }


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

    train: TrainConfig
    eval: EvalConfig | None = Field(None, description="held-out prompts; without them there is no evaluation")
    accept_changes: bool = Field(
        False,
        description="whether a resumed run goes on when its rows are no longer those it began with; false: it ends and "
        "says what changed",
    )
