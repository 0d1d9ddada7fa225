"""The recipe's `weights` section: how new weights reach the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WeightsConfig(BaseModel):
    """Weight sync."""

    model_config = ConfigDict(extra="forbid")

    transport: Literal["reshard", "broadcast", "disk", "delta"] = Field(
        "reshard",
        description="reshard: each trainer rank sends each engine rank the blocks that it holds, straight into "
        "its parameters; broadcast: one rank gathers whole tensors and broadcasts them, as stock SGLang takes them; "
        "disk: one rank writes them to a folder, from which engines load; delta: as disk, but only what changed "
        "since the version before, which each engine's node has a copy of",
    )
    folder: str | None = Field(
        None,
        description="of disk and delta: where versions are written, seen by all nodes; by default `weights` in the "
        "run folder. Elsewhere each run has a folder of its own in it",
    )
    keep_versions: int = Field(
        2,
        ge=1,
        description="of disk and delta: how many versions stay, besides those that a kept one starts from",
    )
    full_every: int = Field(
        16,
        ge=1,
        description="of delta: every how many versions one is written whole; an engine that joins reads from it",
    )
    local_folder: str | None = Field(
        None,
        description="of delta: where an engine's node keeps its copy, as large as the weights; by default $TMPDIR "
        "where that is set, else /dev/shm",
    )
    backend: Literal["auto", "nccl", "gloo", "ipc"] = Field(
        "auto",
        description="how trainer and engines reach each other: nccl between GPUs, gloo without. ipc: each maps the "
        "other's buckets (CUDA IPC, shared memory without a GPU) where they are on one node, as on a GPU that they "
        "share, which NCCL refuses: auto means it in the colocated layout. What is elsewhere gets it through gloo",
    )
    bucket_bytes: int = Field(
        1 << 29,
        ge=1 << 16,
        description="of weights in flight at a time; two such buckets are in memory on both sides",
    )
    double_buffer: bool = Field(
        False,
        description="reshard: engines receive beside the weights in use, and stand still only while they copy them "
        "over; takes GPU memory as large as an engine's weights (leave it: rollout.sglang.mem-fraction-static)",
    )
    pause: Literal["in_place", "retract"] = Field(
        "in_place",
        description="what requests in flight do: keep their cache, or recompute it under the new weights",
    )
    timeout_s: float = Field(600, gt=0, description="deadline of one round")
    check: bool = Field(False, description="after each round compare every engine tensor with the trainer's")
