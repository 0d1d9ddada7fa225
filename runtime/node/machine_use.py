"""Measures how busy a machine's CPUs are, and how full its memory and disks, from /proc and the cgroup's files.

The node agent replaces `nodes/<group>-<node>.json` in the run folder every ten seconds, for the dashboard. A look
costs well under a millisecond and asks no driver.
"""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

import msgspec

from verst.runtime.run.folder import RunFolder

EVERY_S = 10.0


class MachineUse(msgspec.Struct, frozen=True, kw_only=True):
    """The use of one machine at one moment, by all its processes, ours or not. Sizes are in bytes."""

    host: str
    cpus: int  # that the agent may use
    cpu: (
        float | None
    )  # share of all CPUs' time that was busy since the look before, 0 to 1; None at the first look
    load: float  # mean number of runnable processes over the last minute
    memory_used: (
        int  # without what the kernel can give up; of the job if its cgroup has a limit, else of the machine
    )
    memory_total: int  # the cgroup's limit, or all of the machine
    folder_free: int  # of the run folder's file system, for an ordinary user
    folder_total: int
    scratch_free: int  # of the folder for temporary files
    scratch_total: int


def use_path(folder: RunFolder, group: str, node: int) -> Path:
    """The file with a node's figures."""
    return folder.root / "nodes" / f"{group}-{node}.json"


class Meter:
    """Measures this machine. CPU time is counted from one call of `measure` to the next."""

    def __init__(
        self, folder: Path, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        """`folder` is on the file system whose space is measured. `proc` and `cgroups` are elsewhere in tests only."""
        self._folder, self._proc, self._cgroups = folder, proc, cgroups
        self._host = socket.gethostname()
        self._before: tuple[int, int] | None = None  # busy and all ticks

    def measure(self) -> MachineUse:
        """Raises OSError if a file cannot be read."""
        used, total = self._memory()
        folder, scratch = os.statvfs(self._folder), os.statvfs(tempfile.gettempdir())
        return MachineUse(
            host=self._host,
            cpus=len(os.sched_getaffinity(0)),
            cpu=self._cpu(),
            load=float((self._proc / "loadavg").read_text().split()[0]),
            memory_used=used,
            memory_total=total,
            folder_free=folder.f_bavail * folder.f_frsize,
            folder_total=folder.f_blocks * folder.f_frsize,
            scratch_free=scratch.f_bavail * scratch.f_frsize,
            scratch_total=scratch.f_blocks * scratch.f_frsize,
        )

    def _cpu(self) -> float | None:
        with (self._proc / "stat").open() as lines:
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, next(lines).split()[1:9])
        busy = user + nice + system + irq + softirq + steal
        whole = busy + idle + iowait
        before, self._before = self._before, (busy, whole)
        if before is None or whole <= before[1]:
            return None
        return min(1.0, max(0.0, (busy - before[0]) / (whole - before[1])))

    def _memory(self) -> tuple[int, int]:
        """The bytes used and in total: of the tightest cgroup around this process, or of the machine."""
        fields = dict(line.split(":") for line in (self._proc / "meminfo").read_text().splitlines())
        total, available = (int(fields[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
        limited = self._limited()
        return limited if limited is not None and limited[1] < total else (total - available, total)

    def _limited(self) -> tuple[int, int] | None:
        """The use and the limit of the cgroup (version 2) with the lowest limit; None if no cgroup has one."""
        try:
            own = (self._proc / "self/cgroup").read_text().splitlines()
            place = next(line[3:] for line in own if line.startswith("0::")).strip("/")
        except (OSError, StopIteration):
            return None
        found: list[tuple[int, Path]] = []
        group = self._cgroups / place
        while group != self._cgroups:
            try:
                limit = (group / "memory.max").read_text().strip()
            except OSError:
                limit = "max"
            if limit != "max":
                found.append((int(limit), group))
            group = group.parent
        if not found:
            return None
        limit_bytes, group = min(found)
        try:
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            return None
        return max(0, used - int(stat.get("inactive_file", 0))), limit_bytes
