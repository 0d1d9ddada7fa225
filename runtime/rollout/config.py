"""The recipe's `rollout` section."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from verst.runtime.messages.model_config import ArgumentValue, EngineModel


class SamplingConfig(BaseModel):
    """How the engine samples. Names are SGLang's."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = -1
    max_new_tokens: int = Field(1024, ge=1)
    stop: list[str] = []


class RolloutConfig(EngineModel):
    """The engines and what they do with a prompt."""

    model_config = ConfigDict(extra="forbid")

    engines: int = Field(1, ge=1)
    nodes_per_engine: int = Field(
        1,
        ge=1,
        description="nodes that the ranks of an engine are spread over, each with a node agent of its own",
    )
    min_engines: int = Field(1, ge=1, description="the run goes on with any number of engines from this")
    concurrency: int = Field(64, ge=1, description="samples in flight per engine")
    sampling: SamplingConfig = SamplingConfig()
    reward: str = Field(
        description="dotted path to `fn(response: str, label, metadata) -> float`, plain or async"
    )
    generate: str = Field(
        "verst.runtime.rollout.generate:single_turn",
        description="dotted path to `async fn(engine, prompt, sampling, seed) -> Response`, see generate.py",
    )
    filter: str | None = Field(
        None, description="dotted path to a group filter: `fn(group) -> bool`, False drops the group"
    )
    wait_for_engines_s: float = Field(
        14400, gt=0, description="the run waits this long for min_engines engines, then saves and gives up"
    )
    wait_for_trainer_s: float = Field(
        1800,
        gt=0,
        description="an engine waits this long for a trainer that is away, then gives its node back",
    )
    start_timeout_s: float = Field(
        600,
        gt=0,
        description="an engine must serve within this time; of several nodes, the first must begin within it too",
    )
    request_timeout_s: float = Field(600, gt=0)
    sglang: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        description="SGLang's own server arguments by their names: {tp-size: 2, mem-fraction-static: 0.8}",
    )
