"""The messages between the controller and the rollout workers, besides weights: prompts out, results back."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Prompt(msgspec.Struct, kw_only=True):
    """One row of a dataset as a prompt for the engine."""

    ids: list[int]  # tokens
    text: str  # as rendered
    label: Any
    metadata: dict[str, Any]  # the row's other columns, and the content of its column `metadata`
    source: str = ""  # the name of its source, if the recipe has `data.train.sources`
    messages: list[dict[str, Any]] = []  # before they were rendered, in OpenAI's form


class PromptJob(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to answer `samples` times."""

    id: int  # group number for training; for evaluation a number of set and row (`EvalPrompts.place`)
    prompt: Prompt
    samples: int
    evaluation: bool
    set: str = ""  # evaluation: the name of its set
    version: int | None = None  # evaluation: of the weights that it scores
    seeds: list[int]  # one for each sample's random draws
    # The longest sample, prompt included, that can be trained on; None: no limit.
    max_tokens: int | None = None
    shown: bool = False  # evaluation: whether to send the answers back, for people to read
    row: int | None = None  # training: the row of the source, among those that are not left out


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout worker with its engine."""

    engine: int
    incarnation: str  # of its worker's membership; a restarted worker has another


Hold = Literal["all", "weights", "nothing"]  # what to keep in GPU memory, in the colocated layout


class HoldReport(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its memory one process keeps on the device, and how long the change took."""

    held: int  # bytes of weights, gradients, optimizer state and copies that are on the device
    offloaded: int  # bytes of these that are kept on the host; gradients are not kept
    allocated: int  # all bytes that torch has allocated on the GPU; 0 on a CPU
    seconds: float


class EvalAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """What counts of the answers to one evaluation prompt. All lists have one entry for each answer."""

    rewards: list[float]
    tokens: list[int]  # of the response
    truncated: list[bool]  # whether it was cut off by its limit
    votes: list[
        str | None
    ] = []  # the final answer that `extract` finds in it, None: none; empty without `extract`


class EvalResult(msgspec.Struct, frozen=True, kw_only=True):
    """The scored answers to one evaluation prompt."""

    id: int
    version: int  # of the weights that were evaluated
    scored: EvalAnswers
    answers: list[str] = []  # the texts of the answers, if `PromptJob.shown`


class RolloutStats(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's measurements for one group."""

    response_tokens: int
    seconds: float  # from the first request to the last score
    reward_seconds: float
    cached_tokens: int = 0
    failed_rewards: int = (
        0  # calls of the reward that failed and were scored nevertheless, since the last group
    )
    masked_samples: int = 0  # samples that the sample filter has masked, and those that it dropped
    dropped_samples: int = 0
