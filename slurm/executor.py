"""submitit's Slurm executor for what Verst submits: a plain command as an array, with nothing pickled.

The script that `text` gives is the one that is submitted; it stays in the run folder, so that a node can
submit it again and a person can read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

# An agent that fails takes its gang with it; one that ends early does not.
SRUN = ("--kill-on-bad-exit=1", "--wait=0")


def gang_options(options: Mapping[str, bool | int | str]) -> dict[str, bool | int | str]:
    """sbatch's options for one task a node, with these; True is a bare flag, False leaves one out."""
    own = {"ntasks-per-node": 1, "requeue": not options.get("no-requeue", False)}
    return {key: value for key, value in (own | dict(options)).items() if value is not False}


def write_script(text: str, path: Path) -> Path:
    """Writes a batch script that its owner alone can read."""
    path.write_text(text)
    path.chmod(0o700)
    return path


class ArrayExecutor(SlurmExecutor):
    """One array whose tasks are gangs of `nodes` nodes with one task (an agent) on each.

    Args:
        logs: where Slurm writes what the tasks print, as <array>_<index>_<node>_log.out.
        options: sbatch's options by their own names; True is a bare flag, False leaves one out.
        signal_lead_s: USR2 comes this long before the time limit, and at preemption where the site sends it.
        throttle: how many tasks of the array may run at once.
    """

    def __init__(
        self,
        logs: Path,
        *,
        name: str,
        tasks: int,
        nodes: int,
        options: Mapping[str, bool | int | str],
        setup: Sequence[str] = (),
        srun: Sequence[str] = (),
        signal_lead_s: int = 180,
        throttle: int | None = None,
    ) -> None:
        super().__init__(logs)
        chosen = gang_options(options)
        # srun no longer takes this over from sbatch (since 22.05) and would give each agent one core.
        cores = ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"] if "cpus-per-task" in chosen else []
        self.parameters = {
            "job_name": name,
            "nodes": nodes,
            "map_count": tasks,
            "array_parallelism": throttle or tasks,
            "signal_delay_s": signal_lead_s,
            "time": None,  # the partition's own, unless the options say
            "wckey": None,
            "stderr_to_stdout": True,
            "setup": [*setup, *cores],
            "srun_args": [*SRUN, *srun],
            "additional_parameters": chosen,
        }

    @classmethod
    def affinity(cls) -> int:
        """Scripts can be written where there is no Slurm; submitting says so itself."""
        return 2

    def text(self, command: str) -> str:
        """The script that runs `command` on every node of every task."""
        return self._make_submission_file_text(command, uid="")
