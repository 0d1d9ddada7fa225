"""Folders of processes that were killed are removed by the next, those of others that live are not."""

from __future__ import annotations

import errno
import socket
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


def test_sockets_fit_into_it_however_long_tmpdir_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = folder / ("scratch-of-the-job-" * 4)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    made = Scratch("verst-engine-", sockets=True)
    try:
        inside = made.path / "pymp-xxxxxxxx"
        inside.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(inside / "listener-xxxxxxxx"))
    finally:
        made.remove()
    assert not made.path.exists()
    assert Scratch("verst-engine-").path.parent == long  # a folder for files stays where it was wanted
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(OSError, match="set TMPDIR to a folder of at most 53 characters"):
        Scratch("verst-engine-", sockets=True)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
def test_without_locks_it_is_a_folder_all_the_same_that_nobody_removes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(error, "no locks")

    monkeypatch.setattr(scratch, "_NEW_S", 0.0)
    with monkeypatch.context() as without:
        without.setattr("fcntl.flock", no_locks)
        mine = Scratch("verst-test-")
    other = Scratch("verst-test-")  # of a process for which locks work, as with a lockd that was away
    assert mine.path.is_dir()
    for made in (mine, other):
        made.remove()
    assert list(folder.iterdir()) == []
