"""A run folder has one launcher at a time, where the file system can say so."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import is_launched, only_launcher
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    made.start_generation()
    return made


def test_a_second_launcher_is_refused(folder: RunFolder) -> None:
    assert not is_launched(folder)
    with only_launcher(folder):
        assert is_launched(folder)
        with pytest.raises(UserError, match="is already running"), only_launcher(folder):
            pass
    assert not is_launched(folder)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_the_run_goes_on_and_says_so(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: int
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(error, "no locks")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with only_launcher(folder):
        assert is_launched(folder)
    assert f"the file system of {folder.root} has no locks" in capsys.readouterr().err
    write_end(folder, RunEnd(0, "finished", 0))
    assert not is_launched(folder)
    assert capsys.readouterr().err == ""  # `verst status` asks often


def test_another_fault_of_the_disk_is_not_hidden(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", broken)
    with pytest.raises(OSError, match="Input/output error"), only_launcher(folder):
        pass
