"""The recipe's `weights` section: how new weights reach the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WeightsConfig(BaseModel):
    """Weight sync."""

    model_config = ConfigDict(extra="forbid")

    transport: Literal["broadcast"] = "broadcast"
    backend: Literal["auto", "nccl", "gloo"] = Field(
        "auto",
        description="of the groups between trainer and engines: NCCL between GPUs, gloo without; gloo also "
        "where a trainer rank and an engine share one GPU, which NCCL refuses",
    )
    bucket_bytes: int = Field(1 << 29, ge=1 << 16)
    pause: Literal["in_place", "retract"] = Field(
        "in_place",
        description="what requests in flight do: keep their cache, or recompute it under the new weights",
    )
    timeout_s: float = Field(600, gt=0, description="deadline of one round")
    check: bool = Field(False, description="after each round compare every engine tensor with the trainer's")
