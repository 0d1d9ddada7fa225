"""Calls Slurm's commands. Each call has a deadline, and an error has the command and Slurm's answer."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TIMEOUT_S = 60.0  # longer than Slurm's own message timeouts, since a busy slurmctld answers late
_ATTEMPTS = 3
_PAUSE_S = 5.0
# Answers after which it is worth trying again: slurmctld was away or overloaded.
_PASSING = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Connection refused",
    "Connection reset",
    "Slurm temporarily unable to accept job",
    "Resource temporarily unavailable",
)


class SlurmError(RuntimeError):
    """A Slurm command failed. The message has the command and its answer."""


def call(
    argv: Sequence[str], timeout_s: float = _TIMEOUT_S, environment: Mapping[str, str] | None = None
) -> str:
    """Runs a command and returns its stdout. If slurmctld is away, it tries again twice. Raises SlurmError."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        except FileNotFoundError:
            raise SlurmError(
                f"there is no {argv[0]} on this machine: use a login node (perhaps after `module load slurm`)"
            ) from None
        except subprocess.TimeoutExpired:
            answer = f"no answer within {timeout_s:.0f} s"
        else:
            if done.returncode == 0:
                return done.stdout
            answer = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").replace(
                "\n", "; "
            )
            if not any(text in answer for text in _PASSING):
                raise SlurmError(f"{shlex.join(argv)}: {answer}")
        if attempt < _ATTEMPTS:
            time.sleep(_PAUSE_S)
    raise SlurmError(f"{shlex.join(argv)}, tried {_ATTEMPTS} times: {answer}")


def submit(script: Path, *options: str) -> str:
    """Submits a script. `options` override the script's. Returns the id of the job or array, without an index."""
    # sbatch passes its environment on. Submitted from within a job, the new job would otherwise take over
    # that job's identity, restart count and options.
    own = ("SLURM_", "SBATCH_", "SRUN_") if "SLURM_JOB_ID" in os.environ else ()
    environment = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(own)}
    answer = call(["sbatch", "--parsable", *options, str(script)], environment=environment)
    return answer.strip().splitlines()[-1].partition(";")[0]


def requeue(job: str) -> None:
    """Requeues a job. Its processes get SIGTERM at once."""
    call(["scontrol", "requeue", job])


def cancel(jobs: Sequence[str], *options: str) -> None:
    """Cancels jobs. Jobs that have already ended are not an error."""
    if jobs:
        call(["scancel", "--quiet", *options, *jobs])
