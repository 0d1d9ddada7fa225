"""The recipe's `algorithm` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

RoutingReplayMode = Annotated[
    Literal["rollout", "trainer", "off"],
    BeforeValidator(lambda value: ("off", "rollout")[value] if isinstance(value, bool) else value),
]


class WarmStartConfig(BaseModel):
    """Supervised steps on demonstrations before reinforcement learning begins."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="JSONL or parquet with a prompt and a response column")
    prompt_key: str = "prompt"
    response_key: str = "response"
    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    lr: float | None = Field(
        None, gt=0, description="learning rate of these steps, instead of Megatron's schedule"
    )


class AlgorithmConfig(BaseModel):
    """What is optimised, and on how much data a step."""

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(ge=1)
    prompts_per_step: int = Field(ge=1)
    samples_per_prompt: int = Field(ge=1)
    seed: int = 1234
    mode: Literal["sync", "one_step_off", "fully_async"] = "sync"
    max_staleness: int | None = Field(
        None,
        ge=0,
        description="weight versions a trained group may lag; by default 0, 1 or 4 as the mode says",
    )
    advantage: str = Field(
        "verst.runtime.algorithms.advantages:group_normalised",
        description="dotted path to `fn(rewards: list[float]) -> list[float]` over one prompt group",
    )
    loss: str = Field(
        "verst.runtime.algorithms.losses:grpo",
        description="dotted path to a per-token policy loss, see `losses.py`",
    )
    loss_average: Literal["token", "sample"] = Field(
        "token", description="mean over all trained tokens of the step, or over samples of their token means"
    )
    skip_zero_advantage: bool = Field(
        False,
        description="leave out samples whose advantage is zero (all of a group scored alike): the gradient "
        "is the same and the step shorter; not with a KL or entropy term, which would use them",
    )
    clip_low: float = Field(0.2, ge=0)
    clip_high: float = Field(0.2, ge=0)
    kl_coef: float = Field(
        0.0, ge=0, description="weight of the KL (k3) to the reference model; 0 keeps none"
    )
    entropy_coef: float = 0.0
    routing_replay: RoutingReplayMode = Field(
        "off",
        description="train mixture-of-experts models on the engine's routing (rollout: R3; true means this), on the "
        "trainer's own of a pass before the step (trainer: R2), or let routers choose freely (off, false)",
    )
    routing_probe_interval: int = Field(
        1,
        ge=0,
        description="steps between measurements of what replay changes: one more forward pass, without replay, of "
        "one micro-batch; 0 measures never",
    )
    warm_start: WarmStartConfig | None = None

    @model_validator(mode="after")
    def _zero_advantages_are_of_no_use(self) -> AlgorithmConfig:
        if self.skip_zero_advantage and (self.kl_coef or self.entropy_coef):
            raise ValueError(
                "skip_zero_advantage is true, but kl_coef and entropy_coef train on such samples: set them to 0"
            )
        return self

    @property
    def staleness(self) -> int:
        """The bound on weight versions between generating and training a group."""
        if self.max_staleness is not None:
            return self.max_staleness
        return {"sync": 0, "one_step_off": 1, "fully_async": 4}[self.mode]
