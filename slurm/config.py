"""The recipe's `slurm` section: what `verst submit` asks of the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# An sbatch option's value as YAML writes it; `true` stands for a bare flag.
OptionValue = bool | int | str


class SlurmConfig(BaseModel):
    """How the run's jobs are submitted. Options of sbatch go by sbatch's own names, without the dashes."""

    model_config = ConfigDict(extra="forbid")

    layout: Literal["arrays", "het"] = Field(
        "arrays",
        description="arrays: trainer and engines are an array each and come and go on their own; "
        "het: one heterogeneous job of all nodes, all or nothing",
    )
    sbatch: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="sbatch's options for every job: {partition: gpu, account: lab, time: 24:00:00, exclusive: true}",
    )
    trainer: dict[str, OptionValue] = Field(
        default_factory=dict, description="further ones for the trainer array: {gpus-per-node: 8}"
    )
    rollout: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="further ones for the rollout array, which may lie in another partition: {partition: preempt}",
    )
    throttle: int | None = Field(
        None, ge=1, description="engines that may run at once, as `%N` of the rollout array"
    )
    after_trainer: bool = Field(
        False,
        description="engines start only once the trainer has (a dependency `after:` of the rollout array)",
    )
    setup: list[str] = Field(
        default_factory=list,
        description="shell lines before the agents start: [module load cuda, export NCCL_DEBUG=WARN]",
    )
    container: str = Field(
        "", description="a command line in front of the agent's: apptainer exec --nv /images/verst.sif"
    )
    srun: list[str] = Field(
        default_factory=list, description="further options of srun: [--container-image=/images/verst.sqsh]"
    )
    python: str | None = Field(
        None, description="the Python of the nodes (of the container); by default the one that submits"
    )
    interface: str = Field(
        "auto",
        description="network interface of the run's own traffic (ib0, hsn0, …) or an address; auto: the fastest",
    )
    restart: Literal["auto", "requeue", "resubmit", "chain"] = Field(
        "auto",
        description="how an interrupted run comes back: requeued, submitted again from its node, or by the next job "
        "of a chain submitted beforehand; auto: what the cluster's configuration allows",
    )
    chain: int = Field(4, ge=2, description="jobs of the chain, with `restart: chain`")
    stop_lead_s: int = Field(
        180,
        ge=10,
        description="the signal to stop and save comes this long before the time limit (sbatch --signal)",
    )
    max_failures: int = Field(
        3, ge=0, description="failed lives in a row, without a new checkpoint, after which the run gives up"
    )
    max_fruitless_lives: int = Field(
        10,
        ge=1,
        description="lives in a row that ended without a new checkpoint, however they did (preempted, requeued, lost), "
        "after which the run gives up; an app of actors has no checkpoints and comes back each time",
    )
