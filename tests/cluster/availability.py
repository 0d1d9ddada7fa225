"""Whether this machine can run the cluster, and if not, why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

# Program -> the Debian or Ubuntu package that has it.
PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "munged": "munge",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "useradd": "passwd",
}
FOR_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}


def why_not(accounting: bool = False) -> str | None:
    """What this machine lacks for a cluster, in words, or None if it can run one."""
    if sys.platform != "linux":
        return "a Slurm cluster needs Linux"
    if os.geteuid() != 0:
        return "a Slurm cluster of several nodes on one machine needs root"
    wanted = PROGRAMS | (FOR_ACCOUNTING if accounting else {})
    missing = {package for program, package in wanted.items() if shutil.which(program) is None}
    if missing:
        return f"Slurm's programs are missing: apt-get install {' '.join(sorted(missing))}"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True, timeout=30
    )
    if tried.returncode:
        return f"this machine allows no network namespaces: {tried.stderr.strip()}"
    return None
