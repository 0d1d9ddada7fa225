"""The recipe's `trainer` section."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from verst.runtime.messages.model_config import ArgumentValue


class TrainerConfig(BaseModel):
    """The Megatron world. `nodes * ranks_per_node` ranks, one per GPU (or per process without GPUs)."""

    model_config = ConfigDict(extra="forbid")

    nodes: int = Field(1, ge=1)
    ranks_per_node: int = Field(1, ge=1)
    max_tokens_per_microbatch: int = Field(
        8192, ge=1, description="padded tokens of one micro-batch, over the context-parallel group"
    )
    old_logprobs: Literal["auto", "recompute", "rollout"] = Field(
        "auto",
        description="the policy that the ratio divides by: recomputed before the step, the engine's own, "
        "or auto: the current policy itself for tokens that its own version generated, else the engine's own",
    )
    step_timeout_s: float = Field(3600, gt=0, description="deadline of a step, a checkpoint or an export")
    threads: int | None = Field(None, ge=1, description="CPU threads of each rank; by default an equal share")
    megatron: dict[str, ArgumentValue] = Field(
        default_factory=dict,
        description="Megatron's own arguments by their own names, without the leading dashes: "
        "{tensor-model-parallel-size: 2, lr: 1.0e-6, sequence-parallel: true}",
    )


class CheckpointConfig(BaseModel):
    """The recipe's `checkpoint` section."""

    model_config = ConfigDict(extra="forbid")

    interval: int = Field(50, ge=1, description="steps between checkpoints; the last step always writes one")
    asynchronous: bool = Field(
        False, alias="async", description="write in the background while training goes on"
    )
    keep: int = Field(2, ge=1, description="complete checkpoints to keep")
