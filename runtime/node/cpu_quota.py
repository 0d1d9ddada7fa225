"""How many cores this process may keep busy: those that it may run on, or fewer if its cgroup has a CPU quota.

Containers are often limited by a quota (`docker run --cpus=4`, a Kubernetes limit), which the kernel does not show
among the allowed cores. More threads than that only slow one another down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def usable_cores(mount: Path = _MOUNT, mine: Path = _MINE) -> int:
    """The number of cores. `mount`: where cgroups are mounted; `mine`: the file with this process's cgroups."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(int(quota) for quota in _quotas(mount, mine))]))


def _quotas(mount: Path, mine: Path) -> Iterator[float]:
    """The quotas, in cores, of the process's cgroup and of those above it."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # cgroup v2
            yield from _along(mount, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            yield from _along(mount / controllers, path, _quota_v1)
            if controllers != "cpu":
                yield from _along(mount / "cpu", path, _quota_v1)


def _along(root: Path, path: str, quota: Callable[[Path], float | None]) -> Iterator[float]:
    folder = root / path.lstrip("/")
    while True:
        if (found := quota(folder)) is not None:
            yield found
        if folder == root or root not in folder.parents:
            return
        folder = folder.parent


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
