"""Decides what Slurm's commands, and the jobs that they submit, take over from the shell that calls them.

Variables with the names of Slurm change what Slurm does: SBATCH_PARTITION overrides the partition in a script,
SQUEUE_PARTITION hides jobs from squeue, and sbatch hands SLURM_TIMELIMIT on to the job's own srun. So none of
them is passed on, but for the few of `ALLOWED`. All other variables (PATH, HF_HOME, …) reach the jobs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from verst.slurm.sbatch_options import KNOWN, OWNED

# How the commands find the cluster and prove who calls them.
ALLOWED = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})

# What Slurm's commands read or Slurm sets in jobs; what its MPI plug-ins set in tasks; what submitit reads; and
# the identity that Verst gives to the processes of a run, one of which may submit another run.
_DROPPED = re.compile(
    r"(SLURM|SLURMD|SLURMCTLD|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SACCTMGR|SINFO|SCANCEL|SCONTROL|SPRIO|SSTAT|SSHARE"
    r"|SREPORT|SDIAG|SATTACH|SBCAST|STRIGGER|SCRONTAB|PMI|PMI2|PMIX|SUBMITIT|VERST)_"
)
# Variables of sbatch that are not named after their option.
_OPTIONS = {
    "TIMELIMIT": "time",
    "MEM_PER_NODE": "mem",
    "ARRAY_INX": "array",
    "JOB_NAME": "job-name",
    "CPU_FREQ_REQ": "cpu-freq",
    "REQ_SWITCH": "switches",
    "WAIT4SWITCH": "switches",
}


def environment_for_slurm(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for Slurm's commands and for jobs: `environ` (os.environ) without what would change either."""
    source = os.environ if environ is None else environ
    return {name: value for name, value in source.items() if name in ALLOWED or not _DROPPED.match(name)}


def unused_variables(environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """A sentence for each variable by which the user may have meant to change the jobs, and which has no effect."""
    source = os.environ if environ is None else environ
    in_job = "SLURM_JOB_ID" in source  # there Slurm itself has set dozens of SLURM_ and some SRUN_ variables
    read = re.compile("SBATCH_" if in_job else "SBATCH_|SLURM_|SRUN_")
    for name in sorted(source):
        if name in ALLOWED or not read.match(name):
            continue
        text = f"{name}={source[name]} of this shell has no effect: only the recipe says how its jobs are submitted"
        option = _option(name)
        if option in KNOWN and option not in OWNED:
            text += f" (slurm.sbatch: {{{option}: {source[name] or 'true'}}})"
        elif option in OWNED:
            text += f" (--{option}: {OWNED[option]})"
        yield text


def _option(name: str) -> str:
    """The option of sbatch that a variable sets: SBATCH_MEM_PER_CPU -> mem-per-cpu."""
    rest = name.partition("_")[2]
    return _OPTIONS.get(rest, rest.lower().replace("_", "-"))
