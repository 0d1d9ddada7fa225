"""Makes the sbatch script of an array that runs a plain command. Based on submitit's Slurm executor; pickles nothing.

The script is submitted as `text` returns it. It stays in the run folder, so that a node can submit it again
and people can read it.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

# If one agent fails, srun ends the other agents of the task. If one exits with 0, the others run on.
SRUN = ("--kill-on-bad-exit=1", "--wait=0")
# What agents listen to. Not submitit's own, which the shell's SUBMITIT_PREEMPT_SIGNAL decides.
STOP_SIGNAL = signal.SIGUSR2
# srun hands the script's environment on, with what `setup` exports, even if the site's default is another.
WHOLE_ENVIRONMENT = "export SLURM_EXPORT_ENV=ALL"


def gang_options(options: Mapping[str, bool | int | str], signal_lead_s: int) -> dict[str, bool | int | str]:
    """Adds the sbatch options for one task per node to `options`. True is a flag without a value; False drops it."""
    own: dict[str, bool | int | str] = {
        "ntasks-per-node": 1,
        "requeue": not options.get("no-requeue", False),
        # The limits of the login node's shell (CPU time, open files, locked memory) are not for a compute node.
        "propagate": "NONE",
    }
    signals = {"signal": f"{STOP_SIGNAL.name.removeprefix('SIG')}@{signal_lead_s}"}
    return {key: value for key, value in (own | dict(options) | signals).items() if value is not False}


def write_script(text: str, path: Path) -> Path:
    """Writes a batch script that only its owner can read. Returns its path."""
    path.write_text(text)
    path.chmod(0o700)
    return path


class ArrayExecutor(SlurmExecutor):
    """An array of `tasks` tasks. Each has `nodes` nodes, with one process (an agent) on each.

    Args:
        logs: folder for the output of the tasks, as <array>_<index>_<node>_log.out.
        options: sbatch options by their own names. True is a flag without a value; False drops the option.
        signal_lead_s: seconds between the signal USR2 and the time limit. Some sites send USR2 at preemption too.
        after: lines of shell after srun; the first one finds its exit code in $?.
        throttle: most tasks of the array that run at the same time.
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
        after: Sequence[str] = (),
        signal_lead_s: int = 180,
        throttle: int | None = None,
    ) -> None:
        super().__init__(logs)
        chosen = gang_options(options, signal_lead_s)
        # Since 22.05, srun no longer inherits this from sbatch and would give each agent one core.
        cores = ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"] if "cpus-per-task" in chosen else []
        self.parameters = {
            "job_name": name,
            "nodes": nodes,
            "map_count": tasks,
            "array_parallelism": throttle or tasks,
            "signal_delay_s": signal_lead_s,
            "time": None,  # the partition's default, unless the options set it
            "wckey": None,
            "stderr_to_stdout": True,
            "setup": [*setup, *cores, WHOLE_ENVIRONMENT],
            "teardown": list(after) or None,
            "srun_args": [*SRUN, *srun],
            "additional_parameters": chosen,
        }

    @classmethod
    def affinity(cls) -> int:
        """Makes submitit accept a machine without Slurm. It can write scripts; only `submit` fails there."""
        return 2

    def text(self, command: str) -> str:
        """The text of the script that runs `command` on every node of every task."""
        return self._make_submission_file_text(command, uid="")
