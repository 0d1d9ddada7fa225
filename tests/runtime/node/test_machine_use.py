"""The figures of a machine are those that the kernel tells, and those of a job with a limit are the job's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from verst.runtime.node.agent.machine_figures import MachineFigures
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.node.machine_use import MachineUse, Meter, use_path
from verst.runtime.run.folder import RunFolder

MEMINFO = "MemTotal:       1048576 kB\nMemFree:  1 kB\nMemAvailable:    786432 kB\n"


def pretend(root: Path, stat: str, cgroup: str = "0::/\n") -> Path:
    """A /proc with these files."""
    (root / "self").mkdir(parents=True, exist_ok=True)
    (root / "stat").write_text(f"cpu  {stat} 0 0\ncpu0 1 2 3\n")
    (root / "meminfo").write_text(MEMINFO)
    (root / "loadavg").write_text("1.50 0.5 0.2 3/400 123\n")
    (root / "self/cgroup").write_text(cgroup)
    return root


def test_cpu_time_is_counted_from_one_look_to_the_next(tmp_path):
    meter = Meter(tmp_path, pretend(tmp_path / "proc", "100 0 50 800 50 0 0 0"), tmp_path)
    assert meter.measure().cpu is None
    pretend(tmp_path / "proc", "130 10 70 840 90 5 5 10")  # 80 busy ticks of 160
    use = meter.measure()
    assert use.cpu == pytest.approx(0.5)
    assert use.load == 1.5
    assert (use.memory_used, use.memory_total) == (256 << 20, 1 << 30)


def test_of_a_job_with_a_limit_its_own_memory_counts(tmp_path):
    job = tmp_path / "cgroup/slurm/job_7"
    (job / "step_0").mkdir(parents=True)
    (job / "memory.max").write_text(f"{512 << 20}\n")
    (job / "memory.current").write_text(f"{400 << 20}\n")
    (job / "memory.stat").write_text(f"anon 1\ninactive_file {100 << 20}\n")
    (job / "step_0/memory.max").write_text("max\n")
    proc = pretend(tmp_path / "proc", "1 1 1 1 1 1 1 1", "0::/slurm/job_7/step_0\n")
    use = Meter(tmp_path, proc, tmp_path / "cgroup").measure()
    assert (use.memory_used, use.memory_total) == (300 << 20, 512 << 20)


def test_the_real_figures_are_those_that_psutil_has(tmp_path):
    use = Meter(tmp_path).measure()
    disk = psutil.disk_usage(str(tmp_path))
    assert use.folder_total == pytest.approx(disk.total, rel=0.01)
    assert use.memory_total <= psutil.virtual_memory().total
    assert 0 < use.memory_used <= use.memory_total
    assert use.cpus == len(os.sched_getaffinity(0))
    assert use.host == os.uname().nodename


def test_the_agent_writes_them_and_says_once_why_it_cannot(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    folder.create()
    figures = MachineFigures(ThisNode(folder, "trainer", 3, 0))
    figures.look(100.0)
    path = use_path(folder, "trainer", 3)
    assert msgspec.json.decode(path.read_bytes(), type=MachineUse).cpus >= 1
    inode = path.stat().st_ino
    figures.look(105.0)
    assert path.stat().st_ino == inode  # not twice in ten seconds
    figures.look(111.0)
    assert path.stat().st_ino != inode
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")
    figures.look(130.0)
    figures.look(150.0)
    said = capsys.readouterr().err
    assert said.count("the use of this machine cannot be written") == 1, (said, sys.version)
