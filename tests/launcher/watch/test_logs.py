"""`verst logs` follows thousands of files across their being set aside and opens only those that grew."""

from __future__ import annotations

import builtins
import io
import os
import pathlib
import time
from pathlib import Path

import pytest

from verst.launcher.recipe.faults import UserError
from verst.launcher.watch.log_files import GrowingLog, log_files
from verst.launcher.watch.log_times import moment, parse_since
from verst.launcher.watch.logs import Wanted, print_logs
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


@pytest.mark.long
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
        with builtins.open(folder.logs / f"life-0/trainer/{rank // 8}/trainer-{rank}.log", "a") as file:
            file.write("failed\n")
    opened = 0
    began = time.monotonic()
    assert [line for log in logs for line in log.lines()] == ["failed", "failed"]
    assert opened == 2
    assert time.monotonic() - began < 1


def test_the_last_lines_come_from_what_was_set_aside_too(tmp_path):
    log = tmp_path / "x.log"
    append(log, "1\n2\n3\n")
    set_aside(log, 1, 2)
    append(log, "4\n5\nhalf")
    for count, expected in (
        (0, []),
        (1, ["5"]),
        (2, ["4", "5"]),
        (4, ["2", "3", "4", "5"]),
        (9, list("12345")),
    ):
        follower = GrowingLog(log)
        assert follower.last(count) == expected
    append(log, " done\n")
    assert list(follower.lines()) == ["half done"]


def test_a_piece_may_be_smaller_than_a_line(tmp_path):
    log = tmp_path / "x.log"
    append(log, "a" * 5000 + "\n" + "b\n")
    assert list(GrowingLog(log, 16).lines()) == ["a" * 5000, "b"]


def printed(capsys, folder: RunFolder, **wanted) -> list[str]:
    assert print_logs(folder.root, False, Wanted(**wanted)) == 0
    return capsys.readouterr().out.splitlines()


def test_logs_are_merged_by_time(folder, capsys):
    folder.recipe.write_text("")
    (folder.log_folder("trainer", 0, 0) / "trainer-0.log").write_text(
        "W0501 no time yet\n2026-05-01 12:00:01.000 one\n  its second line\n2026-05-01 12:00:03.000 three\n"
    )
    (folder.log_folder("rollout", 0, 0) / "rollout-0.log").write_text(
        "2026-05-01 12:00:00.500 zero\n2026-05-01 12:00:02.000 two\n"
    )
    (folder.log_folder("rollout", 0, 0) / "sglang-0.log").write_text("[2026-05-01 12:00:04 TP0] four\n")
    in_order = ["rollout-0 | 2026-05-01 12:00:00.500 zero", "trainer-0 | W0501 no time yet"]
    in_order += ["trainer-0 | 2026-05-01 12:00:01.000 one", "trainer-0 |   its second line"]
    in_order += ["rollout-0 | 2026-05-01 12:00:02.000 two", "trainer-0 | 2026-05-01 12:00:03.000 three"]
    in_order += ["sglang-0 | [2026-05-01 12:00:04 TP0] four"]
    assert printed(capsys, folder) == in_order
    assert printed(capsys, folder, tail=3) == in_order[-3:]
    assert printed(capsys, folder, tail=0) == []
    assert printed(capsys, folder, since="2026-05-01 12:00:01") == in_order[1:]
    assert printed(capsys, folder, since="2026-05-01 12:00:02", tail=1) == in_order[-1:]
    assert printed(capsys, folder, grep="one|two", tail=1) == [in_order[4]]
    assert printed(capsys, folder, since="1h") == []


@pytest.mark.parametrize(("text", "ago"), [("30s", 30), ("10m", 600), ("1.5h", 5400), ("2d", 172800)])
def test_since_may_be_a_time_ago(text, ago):
    assert moment(parse_since(text)) == pytest.approx(time.time() - ago, abs=2)


def test_since_may_be_a_time_of_today_or_a_day():
    assert parse_since("09:05") == time.strftime("%Y-%m-%d 09:05:00.000")
    assert parse_since("2026-05-01") == "2026-05-01 00:00:00.000"
    with pytest.raises(UserError, match=r"--since 'yesterday' must be a time ago \(30s, 10m, 2h, 1d\)"):
        parse_since("yesterday")


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
