"""The Slurm binding: scripts and submission through submitit, a task's own environment, job states, restarts.

It knows nothing of reinforcement learning and imports nothing of Verst's: `verst.launcher.slurm.launch`
submits a run with it and `verst.launcher.slurm.job` is what runs in each of the run's tasks.
"""

from verst.slurm.config import SlurmConfig
from verst.slurm.environment import NotInSlurmError, TaskEnvironment
from verst.slurm.executor import ArrayExecutor, write_script
from verst.slurm.het import Component, het_script
from verst.slurm.job_states import JobState, job_states
from verst.slurm.programs import SlurmError, cancel, requeue, submit

__all__ = [
    "ArrayExecutor",
    "Component",
    "JobState",
    "NotInSlurmError",
    "SlurmConfig",
    "SlurmError",
    "TaskEnvironment",
    "cancel",
    "het_script",
    "job_states",
    "requeue",
    "submit",
    "write_script",
]
