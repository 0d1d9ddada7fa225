"""The recipe's `placement` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class PlacementConfig(BaseModel):
    """Which nodes and GPUs trainer and engines have, and where on a node their processes run."""

    model_config = ConfigDict(extra="forbid")

    layout: Literal["disaggregated", "colocated"] = Field(
        "disaggregated",
        description="disaggregated: trainer and engines have GPUs of their own; colocated: engines are on the "
        "trainer's nodes and GPUs and take turns with it (mode sync)",
    )

    affinity: Literal["auto", "none"] = Field(
        "auto",
        description="auto: each rank and engine runs on CPUs of its own, on the NUMA node of its GPUs, where there "
        "are at least two for each; none: anywhere on its node",
    )
    cpus: dict[Literal["trainer", "rollout"], Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="CPUs of each rank and of each engine (on each of its nodes), instead of an equal share: "
        "{trainer: 8, rollout: 16}",
    )
    nics: Literal["any", "near"] = Field(
        "any",
        description="near: NCCL_IB_HCA and UCX_NET_DEVICES name the InfiniBand ports of the process's NUMA node, "
        "unless they are set; any: NCCL finds the near ones by itself",
    )
