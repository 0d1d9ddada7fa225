"""Makes the sbatch script of a heterogeneous job: several components that Slurm starts, preempts and requeues together.

submitit does not support such jobs, and sbatch cannot make an array of them. One srun starts the tasks of all
components; its parts are separated by colons. `TaskEnvironment` tells a task which component it belongs to.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.slurm.slurm import _as_sbatch_flag

from verst.slurm.executor import SRUN, WHOLE_ENVIRONMENT, gang_options


@dataclass(frozen=True)
class Component:
    """One component: `nodes` nodes, with one task on each that runs `command` (a line of shell)."""

    name: str  # the job's name in squeue
    nodes: int
    options: Mapping[str, bool | int | str]  # sbatch options by their own names
    command: str


def het_script(
    logs: Path,
    components: Sequence[Component],
    *,
    setup: Sequence[str] = (),
    srun: Sequence[str] = (),
    after: Sequence[str] = (),
    signal_lead_s: int = 180,
) -> str:
    """The text of the batch script. The output of task n of component k of job 12 goes to `logs`/12+k_n_log.out.

    `after`: lines of shell after srun; the first one finds its exit code in $?.
    """
    batch = {"open-mode": "append", "output": logs / "%j_log.out"}
    requests, parts = [], []
    for number, component in enumerate(components):
        # The other components do not inherit the options of the first, so each lists all of its own.
        asked = {
            "job-name": component.name,
            "nodes": component.nodes,
            **gang_options(component.options, signal_lead_s),
            **(batch if number == 0 else {}),
        }
        requests.append("\n".join(_as_sbatch_flag(option, asked[option]) for option in sorted(asked)))
        # Since 22.05, srun does not inherit this from sbatch either.
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
            WHOLE_ENVIRONMENT,
            f"srun {' : '.join(parts)}",
            *after,
            "",
        ]
    )
