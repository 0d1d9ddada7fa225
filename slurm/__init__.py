"""The binding to Slurm. It knows nothing of reinforcement learning and imports nothing else of Verst.

`executor.py` writes the script of an array, through submitit, and `het.py` that of a heterogeneous job.
`programs.py` calls Slurm's commands, and `shell.py` says what they and the jobs take over from a shell.
`submission.py` submits a script, `job_states.py` asks what became of jobs, and `site.py` reads the cluster's
configuration. `environment.py` reads a task's own identity. `config.py` is the recipe's `slurm`
section, and `sbatch_options.py` lists the sbatch options that it may set. `verst.launcher.slurm.launch`
submits a run with these, and each task of the run runs `verst.launcher.slurm.job`.
"""

from verst.slurm.job_states import JobState, job_states
from verst.slurm.programs import SlurmError, cancel, requeue
from verst.slurm.submission import submit

__all__ = [
    "JobState",
    "SlurmError",
    "cancel",
    "job_states",
    "requeue",
    "submit",
]
