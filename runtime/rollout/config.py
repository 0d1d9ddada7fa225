"""The recipe's `rollout` section."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from verst.runtime.messages.model_config import ArgumentValue, EngineModel


def _top_k(value: int) -> int:
    if value < 1 and value != -1:  # SGLang refuses each request
        raise ValueError("must be at least 1, or -1 for all tokens")
    return value


def _stop(value: list[str]) -> list[str]:
    if "" in value:  # it is at the end of every text: each answer would end after a token
        raise ValueError("an empty string would end every answer after a token; leave it out")
    return value


class SamplingConfig(BaseModel):
    """How engines sample tokens. The names are SGLang's."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="sampling temperature of training answers"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: the probability mass to keep; 1: off"
    )
    top_k: Annotated[int, AfterValidator(_top_k)] = Field(
        -1, description="number of likeliest tokens to sample from; -1: all of them"
    )
    max_new_tokens: int = Field(
        1024, ge=1, description="longest answer in tokens; a longer one is cut off there"
    )
    stop: Annotated[list[str], AfterValidator(_stop)] = Field([], description="strings that end an answer")


class RolloutConfig(EngineModel):
    """The engines, and how a prompt becomes a scored group of samples."""

    model_config = ConfigDict(extra="forbid")

    engines: int = Field(1, ge=1, description="number of engines (SGLang servers)")
    nodes_per_engine: int = Field(
        1,
        ge=1,
        description="number of nodes that the ranks of each engine are spread over; each has its own node agent",
    )
    min_engines: int = Field(
        1,
        ge=1,
        description="fewest engines that the run works with; with fewer it waits, up to wait_for_engines_s",
    )
    concurrency: int = Field(64, ge=1, description="most samples in flight on each engine")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how the engines sample tokens")
    reward: str = Field(
        description="the dotted path of a function `fn(response: str, label, metadata) -> float`, plain or async"
    )
    generate: str = Field(
        "verst.runtime.rollout.generate:single_turn",
        description="dotted path to `async fn(engine, prompt, sampling, seed) -> Response`; see "
        "`runtime/rollout/generate.py`",
    )
    filter: str | None = Field(
        None,
        description="dotted path to a group filter `fn(group) -> bool`; a group is dropped if it returns False",
    )
    wait_for_engines_s: float = Field(
        14400,
        gt=0,
        description="seconds that the run waits for min_engines engines before it saves and gives up",
    )
    wait_for_trainer_s: float = Field(
        1800,
        gt=0,
        description="seconds that an engine waits for an absent trainer before it gives its node back",
    )
    start_timeout_s: float = Field(
        600,
        gt=0,
        description="seconds within which an engine must serve. With several nodes per engine, the first node must "
        "also start within this time",
    )
    request_timeout_s: float = Field(
        600,
        gt=0,
        description="seconds within which an engine must answer a request for one turn, waiting included",
    )
    sglang: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        description="SGLang's server arguments under their own names, without the leading dashes: "
        "`{tp-size: 2, mem-fraction-static: 0.8}`",
    )
