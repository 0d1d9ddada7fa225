"""The recipe's `placement` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class PlacementConfig(BaseModel):
    """Which nodes and GPUs the trainer and the engines get, and which CPUs their processes run on."""

    model_config = ConfigDict(extra="forbid")

    layout: Literal["disaggregated", "colocated"] = Field(
        "disaggregated",
        description="disaggregated: the trainer and the engines have separate GPUs; colocated: the engines "
        "share the trainer's nodes and GPUs and take turns with it (mode sync)",
    )

    affinity: Literal["auto", "none"] = Field(
        "auto",
        description="auto: each rank and engine runs on its own CPUs, on the NUMA node of its GPUs, if "
        "there are at least two CPUs for each; none: each runs anywhere on its node",
    )
    cpus: dict[Literal["trainer", "rollout"], Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="number of CPUs for each rank and for each engine (on each of its nodes), instead of an "
        "equal share: {trainer: 8, rollout: 16}",
    )
    nics: Literal["any", "near"] = Field(
        "any",
        description="near: NCCL_IB_HCA and UCX_NET_DEVICES are set to the InfiniBand ports of the process's "
        "NUMA node, unless they are set already; any: they are not set, and NCCL finds the near ports by itself",
    )
