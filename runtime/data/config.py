"""The recipe's `data` section."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_serializer,
    field_validator,
    model_validator,
)

from verst.runtime.algorithms.evaluation import Scale
from verst.runtime.data.mixture import shares
from verst.runtime.messages.stop_strings import StopStrings
from verst.runtime.messages.top_k import TopK

_PATH = (
    "the prompts, one a row: a file (.jsonl or .json, also .gz or .zst; .parquet, .arrow), a folder of such files or "
    "of `datasets`, a pattern such as `shards/*.jsonl`, or `module:Class`, a source of your own"
)
_SHUFFLE = "whether to shuffle the rows anew for each pass, by algorithm.seed; false: file order"
_CURRICULUM = (
    "dotted path of a function that weighs the rows of the source before each step; by default each row comes once in "
    "each pass"
)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
HELD_OUT = "held_out"  # the name of the evaluation set where the recipe has one without a name


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
    curriculum: str | None = Field(None, description=_CURRICULUM)
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
    curriculum: str | None = Field(None, description=_CURRICULUM)
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
    """A set of held-out prompts, which are answered before, during and after training. For several sets, give each a
    name, and these keys below it.
    """

    interval: int | None = Field(
        None,
        ge=1,
        description="steps between evaluations during training; there is always one before and one after",
    )
    samples_per_prompt: int = Field(1, ge=1, description="answers to each row")
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
    max_new_tokens: int | None = Field(
        None, ge=1, description="longest answer in tokens; by default rollout.sampling.max_new_tokens"
    )
    stop: StopStrings | None = Field(
        None, description="strings that end an answer; by default rollout.sampling.stop"
    )
    k: list[int] = Field(
        [],
        description="the k of `pass@k`, the chance that one of k answers is right; each at most samples_per_prompt",
    )
    threshold: float = Field(
        1.0, allow_inf_nan=False, description="for pass@k: an answer with this reward or more is right"
    )
    reward: str | None = Field(
        None, description="dotted path of this set's reward; by default rollout.reward"
    )
    generate: str | None = Field(
        None, description="dotted path of this set's generate function; by default rollout.generate"
    )
    extract: str | None = Field(
        None,
        description="dotted path to `fn(text: str) -> str | None`, the final answer in an answer's text. With it the "
        "set has `maj@n`, the reward of the final answer that most of a prompt's answers give",
    )

    @field_validator("k")
    @classmethod
    def _counts(cls, value: list[int]) -> list[int]:
        if any(k < 1 for k in value) or len(set(value)) < len(value):
            raise ValueError("must be different numbers of at least 1")
        return value

    @model_validator(mode="after")
    def _enough_answers(self) -> EvalConfig:
        if self.k and max(self.k) > self.samples_per_prompt:
            raise ValueError(
                f"k has {max(self.k)}, but samples_per_prompt is {self.samples_per_prompt}: pass@k needs at least k "
                "answers to each prompt"
            )
        if self.extract is not None and self.samples_per_prompt < 2:
            raise ValueError("extract is for maj@n, which needs samples_per_prompt of at least 2")
        several = max(self.k, default=1) > 1 or self.extract is not None
        if several and self.temperature == 0:
            raise ValueError(
                "temperature is 0, which gives the same answer each time: pass@k with k > 1 and maj@n need one above 0"
            )
        return self

    @property
    def scale(self) -> Scale:
        """Which figures this set has."""
        return Scale(
            samples=self.samples_per_prompt,
            k=tuple(self.k),
            threshold=self.threshold,
            votes=self.extract is not None,
        )


UNION_TAGS = ("one", "several")  # in pydantic's places of faults, beside the keys of the recipe


def _how_many_sets(value: Any) -> str:
    """Whether `data.eval` is one set or has several by name: then all its values are mappings."""
    if isinstance(value, EvalConfig):
        return "one"
    several = (
        isinstance(value, dict) and value and all(isinstance(v, dict | EvalConfig) for v in value.values())
    )
    return "several" if several else "one"


EvalSets = Annotated[
    Annotated[EvalConfig, Tag("one")] | Annotated[dict[str, EvalConfig], Tag("several")],
    Discriminator(_how_many_sets),
]


class DataConfig(BaseModel):
    """The files that prompts come from."""

    model_config = ConfigDict(extra="forbid")

    train: TrainConfig
    eval: EvalSets | None = Field(
        None,
        description="held-out prompts: one set, or several by name (`{math: {path: …}, code: {path: …}}`); without "
        "them there is no evaluation",
    )
    eval_engines: int | None = Field(
        None,
        ge=1,
        description="most engines that an evaluation uses. They keep the weights that it evaluates until it is done, "
        "while the others go on with the next weights; by default all engines",
    )
    accept_changes: bool = Field(
        False,
        description="whether a resumed run goes on when its rows are no longer those it began with; false: it ends and "
        "says what changed",
    )

    @field_validator("eval")
    @classmethod
    def _names(
        cls, value: EvalConfig | dict[str, EvalConfig] | None
    ) -> EvalConfig | dict[str, EvalConfig] | None:
        for name in value if isinstance(value, dict) else ():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a set: letters, digits, '_' and '-', at most 40")
        return value

    @property
    def eval_sets(self) -> dict[str, EvalConfig]:
        """The evaluation sets by name, in the recipe's order. One without a name is `held_out`."""
        if isinstance(self.eval, EvalConfig):
            return {HELD_OUT: self.eval}
        return self.eval or {}

    def eval_place(self, name: str) -> str:
        """The place of a set in the recipe, for messages."""
        return "data.eval" if isinstance(self.eval, EvalConfig) else f"data.eval.{name}"


# Of a run that generates nothing: there are no prompts.
NO_PROMPTS = TrainConfig(path="")
