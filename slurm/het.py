"""One heterogeneous job: several components that Slurm starts, preempts and requeues together.

submitit has no notion of one, and sbatch makes no array of it. Its tasks are the steps' of one srun, whose parts
are separated by colons; `TaskEnvironment` tells each task which component it belongs to.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.slurm.slurm import _as_sbatch_flag

from verst.slurm.executor import SRUN, gang_options


@dataclass(frozen=True)
class Component:
    """`nodes` nodes with one task on each, which runs `command` (a line of shell)."""

    name: str  # in squeue
    nodes: int
    options: Mapping[str, bool | int | str]  # sbatch's, by their own names
    command: str


def het_script(
    logs: Path,
    components: Sequence[Component],
    *,
    setup: Sequence[str] = (),
    srun: Sequence[str] = (),
    signal_lead_s: int = 180,
) -> str:
    """The batch script. Task n of component k of job 12 prints into `logs`/12+k_n_log.out."""
    batch = {"open-mode": "append", "output": logs / "%j_log.out"}
    requests, parts = [], []
    for number, component in enumerate(components):
        # What the first component asks for is not the others' too: each says all.
        asked = {
            "job-name": component.name,
            "nodes": component.nodes,
            "signal": f"USR2@{signal_lead_s}",
            **gang_options(component.options),
            **(batch if number == 0 else {}),
        }
        requests.append("\n".join(_as_sbatch_flag(option, asked[option]) for option in sorted(asked)))
        # Neither does srun take over what sbatch was asked for (since 22.05).
        cores = [f"--cpus-per-task={asked['cpus-per-task']}"] if "cpus-per-task" in asked else []
        flags = shlex.join([f"--het-group={number}", "--unbuffered", *SRUN, *cores, *srun])
        output = f'{shlex.quote(str(logs))}/"$SLURM_JOB_ID"+{number}_%n_log.out'
        parts.append(f"{flags} --output={output} {component.command}")
    return "\n".join(
        [
            "#!/bin/bash",
            "",
            "\n#SBATCH hetjob\n".join(requests),
            "",
            *setup,
            f"srun {' : '.join(parts)}",
            "",
        ]
    )
