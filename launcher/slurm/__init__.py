"""Runs on Slurm: submitting, restarting and cancelling a run's jobs.

`commands.py` implements `verst submit` and `verst cancel`. `launch.py` makes and submits the sbatch scripts,
and `jobs.py` records every job in the run folder. `job.py` is the program that runs in each task. `doctor.py`
implements `verst doctor`. The binding to Slurm itself, which knows nothing of runs, is the folder `slurm/` at
the root.
"""
