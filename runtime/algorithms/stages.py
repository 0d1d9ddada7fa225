"""The recipe's `algorithm.stages`: the parts of a run, one after another.

A stage with rows of its own trains on a data file alone. The policy stage, which comes last, trains on what engines
generate. A run without a policy stage starts no engine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RowFileConfig(BaseModel):
    """A JSONL or parquet file of rows to train on, and how they are rendered."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="a file of rows: .jsonl, .json (one object a line) or .parquet")
    tools_key: str | None = Field(
        "tools",
        description="name of the column with the tools that the chat template tells the model; rows may lack it",
    )
    chat_template: bool = Field(
        True, description="whether to render the messages with the tokenizer's chat template"
    )
    chat_template_file: str | None = Field(
        None, description="a file with the chat template to use instead of the tokenizer's"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the chat template, such as `{enable_thinking: false}`",
    )
    system: str | None = Field(None, description="a system message to put before every row")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="longest row in tokens, as rendered (of a pair, both answers with their prompts together); longer "
        "rows are left out, and counted. By default, and at most, what a micro-batch holds "
        "(trainer.max_tokens_per_microbatch)",
    )


class SftFileConfig(RowFileConfig):
    """Rows to imitate: a prompt and its response, or a conversation."""

    prompt_key: str = Field("prompt", description="name of the column with the prompt")
    response_key: str = Field(
        "response",
        description="name of the column with the response: a string, or a list of one message of the assistant",
    )
    messages_key: str | None = Field(
        None,
        description="name of the column with whole conversations, instead of prompt_key and response_key",
    )
    train_on: Literal["all", "last"] = Field(
        "all",
        description="which turns of the assistant in a conversation are trained on. Nothing else ever is",
    )


class PairFileConfig(RowFileConfig):
    """Pairs of answers to the same prompt, of which one is preferred.

    An answer is a text, or a list of messages: those that follow the prompt, or the whole conversation.
    """

    prompt_key: str | None = Field(
        "prompt",
        description="name of the column with the prompt; null: both answers are whole conversations, and the prompt is "
        "what they have in common, message by message",
    )
    chosen_key: str = Field("chosen", description="name of the column with the preferred answer")
    rejected_key: str = Field("rejected", description="name of the column with the other answer")


class ScoredPairFileConfig(PairFileConfig):
    """Pairs of answers that a reward model learns to score, and by how much it must tell them apart."""

    margin_key: str | None = Field(
        None,
        description="name of the column with the margin of each pair, a number of 0 or above: by how much the score of "
        "the chosen answer should exceed that of the rejected one; by default there is none",
    )


class StageEvalConfig(BaseModel):
    """Held-out rows of a stage, in the form of its data. Their loss is measured; there is nothing to generate."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="a file of rows with the same columns as the stage's data")
    interval: int | None = Field(
        None,
        ge=1,
        description="steps between evaluations; there is always one before and one after the stage",
    )


class RowStage(BaseModel):
    """What stages with rows of their own have in common."""

    model_config = ConfigDict(extra="forbid")

    data: RowFileConfig
    eval: StageEvalConfig | None = Field(
        None, description="held-out rows; without them there is no evaluation"
    )
    steps: int | None = Field(
        None, ge=1, description="the number of steps, each of which updates the weights once; this or epochs"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="passes over the rows of the file, instead of steps. Rows that are left out count, too",
    )
    batch_size: int = Field(64, ge=1, description="rows in each step")
    lr: float | None = Field(
        None, gt=0, description="learning rate of these steps; by default Megatron's schedule"
    )

    @model_validator(mode="after")
    def _has_a_length(self) -> RowStage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage needs steps or epochs, and takes only one of them")
        return self

    @property
    def planned_steps(self) -> int:
        """The number of steps. A recipe that has passed its checks has it in place of epochs."""
        if self.steps is None:
            raise ValueError("the epochs of this stage are not yet counted in steps")
        return self.steps


class SftStage(RowStage):
    """Supervised fine-tuning: imitates the assistant's turns in the rows."""

    kind: Literal["sft"]
    data: SftFileConfig
    loss_average: Literal["token", "sample"] = Field(
        "token",
        description="token: the mean over all trained tokens of the step; sample: the mean over rows, of each row's "
        "mean over its tokens",
    )

    @property
    def held_out(self) -> SftFileConfig | None:
        """The held-out rows, which are read as those of `data` are; None if there are none."""
        return None if self.eval is None else self.data.model_copy(update={"path": self.eval.path})


class StageReferenceConfig(BaseModel):
    """The reference of a stage, if it is not the model that the stage begins with."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        None,
        description="a Hugging Face folder with weights for the model of model.path; by default the reference is the "
        "model that the stage begins with",
    )


class DpoStage(RowStage):
    """Direct preference optimisation: makes the chosen answer of each pair likelier, compared with the rejected one and
    with a reference."""

    kind: Literal["dpo"]
    data: PairFileConfig
    batch_size: int = Field(64, ge=1, description="pairs in each step")
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid",
        description="sigmoid: DPO (arXiv:2305.18290, eq. 7). ipo: the squared distance of the log-ratio from "
        "1 / (2 * beta) (arXiv:2310.12036, eq. 17); log-ratios are sums over tokens, as in the paper",
    )
    beta: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="how strongly the reference holds the model"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="the loss sigmoid: the probability that a pair is labelled the wrong way round (conservative DPO)",
    )
    sft_coef: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the negative log-likelihood of the chosen answers, which is added to the loss: the mean "
        "over pairs, of each answer's mean over its tokens (arXiv:2404.19733); 0: off",
    )
    reference: StageReferenceConfig = Field(
        StageReferenceConfig(), description="which model the reference is"
    )

    @model_validator(mode="after")
    def _smooths_a_sigmoid(self) -> DpoStage:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, but the loss {self.loss} does not use it: leave it out"
            )
        return self

    @property
    def held_out(self) -> PairFileConfig | None:
        """The held-out pairs, which are read as those of `data` are; None if there are none."""
        return None if self.eval is None else self.data.model_copy(update={"path": self.eval.path})


class RewardModelStage(RowStage):
    """Reward model training: the model gets a score in place of its logits, read at the last token of an answer, and
    learns to score the chosen answer of each pair above the rejected one."""

    kind: Literal["reward_model"]
    data: ScoredPairFileConfig
    batch_size: int = Field(64, ge=1, description="pairs in each step")
    center_coef: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the squared sum of a pair's two scores, which is added to the loss: it keeps scores "
        "around 0 (arXiv:2312.09244), such as 0.01; 0: off",
    )

    @property
    def held_out(self) -> ScoredPairFileConfig | None:
        """The held-out pairs, which are read as those of `data` are; None if there are none."""
        return None if self.eval is None else self.data.model_copy(update={"path": self.eval.path})


class PolicyStage(BaseModel):
    """Reinforcement learning, as the other keys of `algorithm` say. Comes last."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["policy"]


# The kinds of stages with rows of their own.
ROW_KINDS = frozenset(["sft", "dpo", "reward_model"])
OfflineStage = SftStage | DpoStage | RewardModelStage
Stage = Annotated[SftStage | DpoStage | RewardModelStage | PolicyStage, Field(discriminator="kind")]


class Span:
    """A stage with rows of its own, and the weight versions that it trains: `first` up to, not including, `end`."""

    def __init__(self, number: int, stage: OfflineStage, first: int) -> None:
        self.number, self.stage, self.first = number, stage, first
        self.end = first + stage.planned_steps

    @property
    def place(self) -> str:
        """Its key in the recipe."""
        return f"algorithm.stages.{self.number}"

    def evaluates(self, version: int) -> bool:
        """Whether the held-out loss of this version is measured: before the stage, after it, and every interval."""
        held_out = self.stage.eval
        if held_out is None or not self.first <= version <= self.end:
            return False
        done = version - self.first
        at_interval = held_out.interval is not None and done % held_out.interval == 0
        return done == 0 or version == self.end or at_interval
