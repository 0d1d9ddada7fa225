"""The cluster's login node, which is the host itself: runs Slurm's commands there and reads their answers."""

from __future__ import annotations

import pwd
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tests.cluster import queries

T = TypeVar("T")

# States that a job does not leave by itself.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "BOOT_FAIL"}


class CommandFailed(RuntimeError):
    """A command ended with an error; the message holds what it printed."""


class LoginNode:
    """Commands run with `env`, and in `home` if they are root's."""

    env: dict[str, str]
    home: Path

    def run(
        self,
        *argv: str,
        check: bool = True,
        user: str | None = None,
        timeout: float = 60,
        stdin: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, as root or as `user`; in the user's home unless `cwd` says otherwise."""
        command = list(argv)
        environment = self.env | dict(env or {})
        if user is not None:
            entry = pwd.getpwnam(user)
            command = ["setpriv", f"--reuid={user}", f"--regid={entry.pw_gid}", "--init-groups", "--", *argv]
            environment |= {"USER": user, "LOGNAME": user, "HOME": entry.pw_dir}
        done = subprocess.run(
            command,
            env=environment,
            cwd=cwd or (self.home if user is None else Path(entry.pw_dir)),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            printed = done.stdout + done.stderr
            raise CommandFailed(f"{' '.join(argv)} ended with {done.returncode}: {printed.strip()}")
        return done

    def sbatch(self, script: str, *options: str, user: str | None = None) -> str:
        """Submit a batch script, whose first line need not be #!; returns the job's id."""
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}"
        return self.run("sbatch", "--parsable", *options, stdin=text, user=user).stdout.strip().split(";")[0]

    def job(self, job_id: str | int) -> dict[str, str]:
        """What `scontrol show job` knows of it; of an array or a heterogeneous job, use `jobs`."""
        found = self.jobs(job_id)
        if len(found) != 1:
            raise ValueError(f"{job_id} is {len(found)} jobs; ask for one of them or call jobs()")
        return found[0]

    def jobs(self, job_id: str | int) -> list[dict[str, str]]:
        """One dict for each task of an array or component of a heterogeneous job."""
        return queries.parse_jobs(self.run("scontrol", "show", "job", "-o", str(job_id)).stdout)

    def queue(self, states: str = "all") -> list[queries.QueueLine]:
        """What squeue lists, each task of an array on a line; finished jobs too, until MinJobAge."""
        argv = ["squeue", "--noheader", "--array", f"--states={states}", f"--format={queries.QUEUE_FORMAT}"]
        return queries.parse_queue(self.run(*argv).stdout)

    def node_states(self) -> dict[str, str]:
        """Each node's state as sinfo says it: idle, mixed, allocated, down, with * if it does not respond."""
        output = self.run("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N %T", check=False)
        return dict(line.split() for line in output.stdout.splitlines())

    def wait_for(self, predicate: Callable[[], T | None], what: str, timeout: float = 30) -> T:
        """What the predicate returns, as soon as that is true in Python's sense."""
        deadline = time.monotonic() + timeout
        while not (answer := predicate()):
            if time.monotonic() > deadline:
                listing = self.run("squeue", "--states=all", check=False).stdout
                nodes = self.run("sinfo", "--Node", "--partition=low", check=False).stdout
                raise TimeoutError(f"waited {timeout:g} s for {what}\n{listing}\n{nodes}")
            time.sleep(0.05)
        return answer

    def wait_for_state(self, job_id: str | int, *states: str, timeout: float = 30) -> dict[str, str]:
        """The job, once it is in one of these states; an error at once if it ends in another."""

        def reached() -> dict[str, str] | None:
            job = self.job(job_id)
            if job["JobState"] in FINAL - set(states):
                raise AssertionError(f"job {job_id} is {job['JobState']}, not {' or '.join(states)}: {job}")
            return job if job["JobState"] in states else None

        return self.wait_for(reached, f"job {job_id} to be {' or '.join(states)}", timeout)
