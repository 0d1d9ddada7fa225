"""A CPU quota of a container counts, whichever of its cgroups has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from verst.runtime.node.cpu_quota import usable_cores

V2 = "0::/kube/pod/box\n"
V1 = "9:name=systemd:/\n4:cpu,cpuacct:/docker/box\n3:cpuset:/\n"


@pytest.mark.parametrize(
    ("mine", "files", "cores"),
    [
        (V2, {"kube/pod/box/cpu.max": "300000 100000\n"}, 3),
        (V2, {"kube/pod/box/cpu.max": "max 100000\n", "kube/pod/cpu.max": "250000 100000\n"}, 2),
        (V2, {"kube/pod/box/cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),  # a container that sees itself as the root
        (V2, {}, 8),
        (V2, {"kube/cpu.max": "6400000 100000\n"}, 8),  # more than there are
        (
            V1,
            {
                "cpu,cpuacct/docker/box/cpu.cfs_quota_us": "200000\n",
                "cpu,cpuacct/docker/box/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (V1, {"cpu/docker/box/cpu.cfs_quota_us": "-1\n", "cpu/docker/box/cpu.cfs_period_us": "100000\n"}, 8),
        ("", {}, 8),
    ],
)
def test_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: str, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "mine").write_text(mine)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path / "cgroup", tmp_path / "mine") == cores


def test_without_cgroups_the_allowed_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none", tmp_path / "nothing") == len(os.sched_getaffinity(0))
