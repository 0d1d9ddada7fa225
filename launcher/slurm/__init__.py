"""Runs on Slurm: submitting, restarting and cancelling a run's jobs.

`commands.py` implements `verst submit` and `verst cancel`. `launch.py` makes and submits the sbatch scripts,
and `jobs.py` records every job in the run folder. `job.py` is the program that runs in each task.
`coming_back.py` starts an interrupted job again, and `not_started.py` is what the scripts do when an agent
cannot even be started. `doctor.py` implements `verst doctor`. The binding to Slurm itself, which knows nothing
of runs, is the folder `slurm/` at the root.
"""
