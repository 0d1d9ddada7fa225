"""The recipe's `rollout` section."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from verst.runtime.messages.model_config import ArgumentValue, EngineModel
from verst.runtime.messages.stop_strings import StopStrings
from verst.runtime.messages.top_k import TopK
from verst.runtime.rewards.config import RewardParts

GREEDY_BELOW = 1e-6  # SGLang samples greedily below this temperature (sampling_params.py: _SAMPLING_EPS)


class SamplingConfig(BaseModel):
    """How engines sample tokens. The names are SGLang's."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="sampling temperature of training answers, greater than 0. The trainer divides its logits by it, "
        "too",
    )
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="must be 1, off, in training, as must top_k and min_p: the engine reports log-probabilities of "
        "the whole distribution, not of the truncated one. Evaluations have their own (data.eval)",
    )
    top_k: TopK = Field(-1, description="must be -1, off, in training; see top_p")
    min_p: float = Field(0.0, ge=0, le=1, description="must be 0, off, in training; see top_p")
    max_new_tokens: int = Field(
        1024, ge=1, description="longest answer in tokens; a longer one is cut off there"
    )
    stop: StopStrings = Field([], description="strings that end an answer")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature < GREEDY_BELOW

    @property
    def truncations(self) -> dict[str, float]:
        """The settings, by name, that leave tokens out of the distribution before one is drawn."""
        off = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}
        return {name: getattr(self, name) for name in off if getattr(self, name) != off[name]}


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
    concurrency: int = Field(
        64,
        ge=1,
        description="most samples in flight on each engine; a prompt "
        "with more answers than this goes to an engine that has nothing else to do",
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="how the engines sample tokens")
    reward: str | RewardParts | None = Field(
        None,
        description="the dotted path of a function `fn(answer: Answer) -> float | Score`, plain or async; or a list of "
        "such functions with weights, whose weighted sum is the reward. Required unless there is a group_reward, or "
        "the generate function is marked with `scores_itself`",
    )
    group_reward: str | None = Field(
        None,
        description="the dotted path of a function `fn(answers: list[Answer]) -> list[float | Score]`, plain or async, "
        "which scores all answers to a prompt together. With a reward too, it gets that one's value as `answer.score`, "
        "and evaluations have the reward alone",
    )
    group_reward_arguments: dict[str, Any] = Field(
        {}, description="keyword arguments that the group_reward gets in each call"
    )
    reward_timeout_s: float = Field(
        60,
        gt=0,
        description="seconds that a call of the reward may take, from its start; then its process is killed",
    )
    reward_failure: Literal["fail", "drop"] | float = Field(
        "fail",
        description="what becomes of a sample whose reward raises, returns no finite number, hangs or crashes. fail: "
        "the run ends with the reason. drop: its group is dropped and counted as `reward_failed`; in an evaluation the "
        "answer scores 0. A number: it is the sample's reward",
    )
    reward_retries: int = Field(
        0,
        ge=0,
        description="how often a failed call of the reward is tried again, before reward_failure counts",
    )
    reward_processes: int | None = Field(
        None,
        ge=1,
        description="processes beside each engine that call the reward; by default as many as it has CPUs, from 2 to "
        "8. Each runs one call of a plain function at a time, and any number of calls of an async one",
    )
    reward_memory_gib: float | None = Field(
        None,
        gt=0,
        description="GiB of memory that each of these processes may use; by default they share a quarter of the node's",
    )
    generate: str = Field(
        "verst.runtime.rollout.generate:single_turn",
        description="dotted path to `async fn(call: GenerateCall) -> Response`; see `runtime/rollout/generate.py`",
    )
    agent: str | None = Field(
        None,
        description="instead of a generate function, the dotted path of an agent "
        "`async fn(call: AgentCall) -> float | Score | None`, which asks the policy by HTTP in OpenAI's or Anthropic's "
        "form; see docs/episodes.md",
    )
    agent_divergence: Literal["new_sample", "refuse"] = Field(
        "new_sample",
        description="what happens if an agent's request has other earlier messages than were said. new_sample: it "
        "begins another sample of the episode. refuse: it is refused",
    )
    generate_timeout_s: float = Field(
        3600,
        gt=0,
        description="seconds that a call of the generate function or the agent may take, with all its turns and waits",
    )
    generate_failure: Literal["fail", "retry"] = Field(
        "fail",
        description="what happens when the generate function raises. fail: the run ends with the reason. retry: the "
        "group is tried again; after three attempts the run ends. Errors of the engine are always tried again",
    )
    filter: str | None = Field(
        None,
        description="dotted path to a group filter `fn(group) -> bool`; a group is dropped if it returns False",
    )
    sample_filter: str | None = Field(
        None,
        description="dotted path to a sample filter `fn(group) -> list`, which keeps, masks or drops single samples of "
        "the groups that the filter keeps; see `runtime/rollout/sample_filters.py`",
    )
    max_dropped_in_a_row: int | None = Field(
        None,
        ge=1,
        description="most prompt groups that may be dropped one after another (by the filter, or because they cannot "
        "be trained on); with more the run saves and ends, with the reasons. By default 1000, or the groups of ten "
        "steps if these are more",
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
        "`{tp-size: 2, mem-fraction-static: 0.8}`. Those that would make the engines another model than is trained "
        "are refused",
    )

    @model_validator(mode="after")
    def _arguments_have_a_function(self) -> RolloutConfig:
        if self.group_reward_arguments and self.group_reward is None:
            raise ValueError("group_reward_arguments are given, but there is no group_reward to get them")
        return self

    @field_validator("reward_failure")
    @classmethod
    def _finite(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("must be fail, drop or a finite number")
        return value


# Of a run that generates nothing: there is no engine.
NO_ROLLOUT = RolloutConfig.model_construct(engines=0, min_engines=0, reward="")
