"""Folders of processes that were killed are removed by the next, those of others that live are not."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from verst.runtime.node import scratch
from verst.runtime.node.scratch import Scratch

PROCESS = """
import time
from verst.runtime.node.scratch import Scratch
made = Scratch("verst-test-")
(made.path / "inside").mkdir()
print(made.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_killed_process_leaves_is_removed_and_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    other = folder / "verst-other"
    other.mkdir()
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        killed, living = (Path(p.stdout.readline().decode().strip()) for p in processes if p.stdout)
        processes[0].kill()
        processes[0].wait(timeout=30)
        Scratch("verst-test-").remove()
        assert killed.is_dir(), "it is young: its process could be about to lock it"
        monkeypatch.setattr(scratch, "_NEW_S", 0.0)
        mine = Scratch("verst-test-")
        assert {path for path in folder.iterdir()} == {other, living, mine.path}
        assert mine.path.stat().st_mode & 0o777 == 0o700
        mine.remove()
        mine.remove()
        assert {path for path in folder.iterdir()} == {other, living}
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=30)
