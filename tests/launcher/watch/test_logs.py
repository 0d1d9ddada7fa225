"""`verst logs` follows thousands of files across their being set aside and opens only those that grew."""

from __future__ import annotations

import builtins
import io
import os
import pathlib
import time
from pathlib import Path

import pytest

from verst.launcher.watch.log_files import GrowingLog, log_files
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.log_lines import set_aside


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.start_generation()
    return run


def test_following_goes_on_across_a_log_that_is_set_aside(tmp_path):
    log = tmp_path / "x.log"
    append(log, "a\nb\n")
    follower = GrowingLog(log)
    assert list(follower.lines()) == ["a", "b"]
    append(log, "c\nhalf")
    assert list(follower.lines()) == ["c"]
    append(log, " done\nd\n")
    set_aside(log, 1, 3)
    append(log, "e\n")
    assert list(follower.lines()) == ["half done", "d", "e"]
    append(log, "f\n")
    assert list(follower.lines()) == ["f"]


def test_the_first_look_begins_with_what_was_set_aside(tmp_path):
    log = tmp_path / "x.log"
    for text in ("first\n", "second\n", "third\n"):
        append(log, text)
        set_aside(log, 1, 2)
    append(log, "now\n")
    assert list(GrowingLog(log).lines()) == ["second", "third", "now"]


def test_of_thousands_of_logs_only_those_that_grew_are_opened_one_at_a_time(folder, monkeypatch):
    for rank in range(2000):
        (folder.log_folder("trainer", rank // 8, 0) / f"trainer-{rank}.log").write_text(f"rank {rank} up\n")
    files = log_files(folder, 0)
    assert len(files) == 2000
    logs = [GrowingLog(path) for path in files]
    most_open = opened = 0
    real = io.open

    def counting(*args, **kwargs):
        nonlocal most_open, opened
        opened += 1
        file = real(*args, **kwargs)
        most_open = max(most_open, len(os.listdir("/proc/self/fd")))
        return file

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(io, "open", counting)
    monkeypatch.setattr(pathlib.io, "open", counting)
    assert sum(len(list(log.lines())) for log in logs) == 2000
    assert opened == 2000
    assert most_open <= before + 3
    for rank in (3, 1999):
        with builtins.open(folder.logs / f"attempt-0/trainer/{rank // 8}/trainer-{rank}.log", "a") as file:
            file.write("failed\n")
    opened = 0
    began = time.monotonic()
    assert [line for log in logs for line in log.lines()] == ["failed", "failed"]
    assert opened == 2
    assert time.monotonic() - began < 1


def test_an_engine_that_came_from_an_earlier_life_is_followed_in_the_file_it_has(folder):
    old_engine = folder.log_folder("rollout", 0, 0) / "rollout-0.log"
    old_trainer = folder.log_folder("trainer", 0, 0) / "trainer-0.log"
    for log in (old_engine, old_trainer):
        log.write_text("old\n")
        os.utime(log, (1, 1))
    folder.start_generation()
    new_trainer = folder.log_folder("trainer", 0, 1) / "trainer-0.log"
    new_trainer.write_text("new\n")
    assert set(log_files(folder, None)) == {new_trainer}
    future = time.time() + 5
    os.utime(old_engine, (future, future))
    os.utime(old_trainer, (future, future))
    assert log_files(folder, None) == {new_trainer: "trainer-0", old_engine: "rollout-0"}
    assert set(log_files(folder, 0)) == {old_engine, old_trainer}
