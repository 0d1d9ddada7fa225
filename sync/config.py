"""The recipe's `weights` section: how new weights get to the engines."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class WeightsConfig(BaseModel):
    """How new weights get to the engines after each step."""

    model_config = ConfigDict(extra="forbid")

    transport: Literal["reshard", "broadcast", "disk", "delta"] = Field(
        "reshard",
        description="`reshard`: each trainer rank sends its blocks straight into the parameters of the engine ranks; "
        "`broadcast`: one rank gathers whole tensors and broadcasts them, as stock SGLang receives them; `disk`: "
        "trainer ranks write whole tensors to a folder, and engines load them from it; `delta`: like `disk`, but only "
        "the changes since the version before are written, and each engine's node keeps a copy of that version",
    )
    folder: str | None = Field(
        None,
        description="for `disk` and `delta`: the folder for versions, visible to all nodes; by default `weights` in "
        "the run folder. In any other folder each run gets a subfolder of its own",
    )
    keep_versions: int = Field(
        2,
        ge=1,
        description="for `disk` and `delta`: how many of the newest versions are kept, besides those that their deltas "
        "start from",
    )
    full_every: int = Field(
        16,
        ge=1,
        description="for `delta`: every N-th version is written whole; an engine that joins starts from the last one",
    )
    local_folder: str | None = Field(
        None,
        description="for `delta`: the folder where an engine's node keeps its copy, which is as large as the weights; "
        "by default $TMPDIR if that is set, else /dev/shm",
    )
    backend: Literal["auto", "nccl", "gloo", "ipc"] = Field(
        "auto",
        description="the connection between trainer and engines. `nccl`: between GPUs; `gloo`: without GPUs; `ipc`: "
        "ranks on one node map each other's buckets (CUDA IPC on GPUs, else shared memory), and ranks on different "
        "nodes use gloo. It is needed where a trainer rank and an engine share a GPU, which NCCL refuses. `auto`: "
        "`ipc` in the colocated layout, otherwise `nccl` with GPUs and `gloo` without",
    )
    bucket_bytes: int = Field(
        1 << 29,
        ge=1 << 16,
        description="size of a bucket, the weights that are in flight at a time; both sides have two in memory",
    )
    double_buffer: bool = Field(
        False,
        description="for `reshard`: engines receive new weights into a second buffer and pause only briefly, to copy "
        "it over the weights in use. Takes as much GPU memory again as an engine's weights: lower "
        "`rollout.sglang.mem-fraction-static` accordingly",
    )
    pause: Literal["in_place", "retract"] = Field(
        "in_place",
        description="what requests in flight do when weights change: `in_place` keeps their cache, `retract` "
        "recomputes it with the new weights",
    )
    timeout_s: float = Field(
        600, gt=0, description="deadline of one weight round (one version to all engines), in seconds"
    )
    check: bool = Field(
        False, description="after each version, compare every engine tensor with the trainer's"
    )
