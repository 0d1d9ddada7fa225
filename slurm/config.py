"""The schema of the recipe's `slurm` section: what `verst submit` requests from the cluster."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# The value of an sbatch option in YAML; `true` means a flag without a value.
OptionValue = bool | int | str


class SlurmConfig(BaseModel):
    """How the run's jobs are submitted. sbatch options have their own names, without the dashes."""

    model_config = ConfigDict(extra="forbid")

    layout: Literal["arrays", "het"] = Field(
        "arrays",
        description="`arrays`: one array for the trainer and one for the engines, whose jobs start and stop on their "
        "own; `het`: one heterogeneous job with all nodes, which starts and stops as a whole",
    )
    sbatch: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="sbatch options for every job: `{partition: gpu, account: lab, time: 24:00:00, exclusive: true}`. "
        "Variables of the shell (`SBATCH_PARTITION`, …) have no effect",
    )
    trainer: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="additional sbatch options for the trainer's jobs: `{gpus-per-node: 8}`. Ranks run on CPUs unless "
        "gpus-per-node, gpus-per-task, gres or tres-per-task requests GPUs (on one node also gpus)",
    )
    rollout: dict[str, OptionValue] = Field(
        default_factory=dict,
        description="additional sbatch options for the engines' jobs, which may use another partition: "
        "`{partition: preempt, gpus-per-node: 8}`",
    )
    throttle: int | None = Field(
        None, ge=1, description="most engines that run at the same time (`%N` of the rollout array)"
    )
    after_trainer: bool = Field(
        False,
        description="start engines only after the trainer has started (dependency `after:` of the rollout array)",
    )
    setup: list[str] = Field(
        default_factory=list,
        description="shell lines to run before the agents start: `[module load cuda, export NCCL_DEBUG=WARN]`",
    )
    container: str = Field(
        "",
        description="command to put before the agent's command: `apptainer exec --nv /images/verst.sif`",
    )
    srun: list[str] = Field(
        default_factory=list, description="additional srun options: `[--container-image=/images/verst.sqsh]`"
    )
    python: str | None = Field(
        None,
        description="Python interpreter on the nodes (in the container); default: the one that runs `verst submit`",
    )
    interface: str = Field(
        "auto",
        description="network interface (ib0, hsn0, …) or address for the run's own traffic; `auto`: the interconnect "
        "if there is one, else the fastest network card, and of several the one that leads to the job's other nodes",
    )
    restart: Literal["auto", "requeue", "resubmit", "chain"] = Field(
        "auto",
        description="how an interrupted run restarts. `requeue`: its job is requeued; `resubmit`: its node submits it "
        "again; `chain`: the next job of a chain submitted beforehand continues; `auto`: requeue or resubmit, as the "
        "cluster's configuration allows",
    )
    chain: int = Field(4, ge=2, description="number of jobs in the chain, with `restart: chain`")
    stop_lead_s: int = Field(
        180,
        ge=10,
        description="seconds between the signal to stop and save and the time limit (sbatch --signal)",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="the run gives up after this many failed lives in a row without a new checkpoint; a job whose "
        "agent cannot be started on its first node is submitted again as often, without that node",
    )
    max_fruitless_lives: int = Field(
        10,
        ge=1,
        description="the run gives up after this many lives in a row without a new checkpoint, however they ended "
        "(failed, preempted, requeued, lost); an app of actors has no checkpoints and always restarts",
    )
