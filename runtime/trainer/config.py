"""The recipe's sections `trainer` and `checkpoint`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from verst.runtime.algorithms.config import EvalFigure
from verst.runtime.messages.model_config import ArgumentValue

OldLogprobs = Literal["auto", "recompute", "rollout"]

# What a recipe leaves out of these Megatron options, which decide training. They are written into the run's recipe.
OPTIMIZER_DEFAULTS: dict[str, ArgumentValue] = {
    "optimizer": "adam",
    "lr": 1e-6,
    "lr-decay-style": "constant",
    "lr-warmup-iters": 0,
    "adam-beta1": 0.9,
    "adam-beta2": 0.999,
    "adam-eps": 1e-8,
    "weight-decay": 0.01,
    "clip-grad": 1.0,
}


class TrainerConfig(BaseModel):
    """The trainer: `nodes * ranks_per_node` Megatron ranks, each a process with one GPU or, on CPUs, none."""

    model_config = ConfigDict(extra="forbid")

    nodes: int = Field(1, ge=1, description="nodes of the trainer")
    ranks_per_node: int = Field(1, ge=1, description="ranks on each node, one for each of its GPUs")
    max_tokens_per_microbatch: int = Field(
        8192,
        ge=1,
        description="most tokens in a micro-batch, over all ranks of a context-parallel group. Its samples are packed "
        "one after another, so their own tokens count, each sample's rounded up to what tensor and context parallelism "
        "divide sequences by",
    )
    old_logprobs: OldLogprobs = Field(
        "auto",
        description="which policy is the old one, the denominator of the policy ratio. recompute: the trainer's before "
        "the step's first update. rollout: the engine's. auto: recompute for tokens that the current weight version "
        "generated, rollout for older ones. A step of several updates takes a forward pass more for recompute and auto",
    )
    max_logprob_diff: float | None = Field(
        None,
        gt=0,
        description="largest mean difference between the engines' and the trainer's log-probabilities, in nats per "
        "token of the current weight version. A run whose first step is beyond it does not train; later steps warn. "
        "By default 0.01 in float32 and 0.3 in bfloat16",
    )
    step_timeout_s: float = Field(
        3600, gt=0, description="seconds within which a step, a checkpoint or an export must end"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of each rank; by default an equal share")
    megatron: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        description="Megatron's own arguments under their own names, without the leading dashes: "
        "`{tensor-model-parallel-size: 2, lr: 1.0e-6, sequence-parallel: true}`. "
        "Defaults that decide training: "
        + ", ".join(f"`{name}: {value}`" for name, value in OPTIMIZER_DEFAULTS.items())
        + ", no dropout, no balancing of experts (`moe-router-load-balancing-type: none`)",
    )


class CheckpointConfig(BaseModel):
    """When a run writes checkpoints, and how many it keeps."""

    model_config = ConfigDict(extra="forbid")

    interval: int = Field(50, ge=1, description="steps between checkpoints; the last step always writes one")
    asynchronous: bool = Field(
        False, alias="async", description="write in the background while training continues"
    )
    keep: int = Field(2, ge=1, description="number of the newest complete checkpoints to keep")
    keep_every: int | None = Field(
        None,
        ge=1,
        description="also keep each checkpoint whose number, as in its folder's name, is a multiple of this",
    )
    keep_best: int = Field(
        0, ge=0, description="also keep so many checkpoints with the best evaluations (data.eval), by `best`"
    )
    best: EvalFigure = Field(
        EvalFigure(),
        description="the figure that says which checkpoint is best, also for `verst export --best`",
    )
