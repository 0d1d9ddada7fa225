"""`verst top` shows a run in the terminal from its folder alone, and leaves when it is asked."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.runtime.dashboard.run_folders import BEGAN, append, give_gpus, make_folder, step
from verst.launcher.cli import app
from verst.launcher.watch.top import Top
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = make_folder(tmp_path / "quick")
    append(folder.metrics, *(step(number) for number in range(1, 4)))
    append(
        folder.events, {"time": BEGAN, "generation": 0, "kind": "engine_ready", "message": "engine 0 serves"}
    )
    return folder


def text_of(top: Top, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    top.update()
    console.print(top.frame(width))
    return console.file.getvalue()


def test_one_frame_for_pipes(folder):
    answer = CliRunner().invoke(app, ["top", str(folder.root), "--once"])
    assert answer.exit_code == 0, answer.output
    for words in (
        "running",
        "3/4 steps",
        "reward 0.393",
        "mean training reward by step",
        "bottleneck: generating samples takes 60 % of the last 3 steps",
        "rollout-0",
        "serving",
        "engine 0 serves",
    ):
        assert words in answer.output
    assert "\x1b" not in answer.output


def test_without_a_terminal_it_is_one_frame_too(folder):
    assert "3/4 steps" in CliRunner().invoke(app, ["top", str(folder.root)]).output


def test_it_follows_the_run(folder):
    top = Top(folder)
    assert "3/4 steps" in text_of(top)
    append(folder.metrics, step(4))
    write_end(folder, RunEnd(0, "controller-0 finished", 0))
    text = text_of(top)
    assert "4/4 steps" in text
    assert text.startswith("finished  controller-0 finished")


def test_a_wide_terminal_has_processes_beside_the_rest(folder):
    lines = text_of(Top(folder), width=200).splitlines()
    beside = next(line for line in lines if "controller-0" in line)
    assert beside.index("controller-0") > 95
    assert beside[:95].strip(), "the rest is at its left"


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_on_80_by_24_processes_and_events_come_first_and_nothing_is_cut(folder, steps):
    for number in range(4, 4 + steps):
        append(folder.metrics, step(number))
    top = Top(folder)
    top.update()
    console = Console(file=io.StringIO(), width=80, height=24)
    console.print(top.frame(80, 24))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    text = "\n".join(lines)
    for process in ("controller-0", "store-0", "trainer-0", "rollout-0"):
        assert process in text
    assert "engine 0 serves" in text
    assert "reward" in text
    assert text.index("rollout-0") < text.index("engine 0 serves")
    console.file.truncate(0)
    console.print(top.frame(80, 60))
    assert "mean training reward by step" in console.file.getvalue(), "there is room for the curve"


def test_gpus_are_shown_where_there_are_some(folder):
    assert "GPU memory" not in text_of(Top(folder))
    give_gpus(folder, used=66_571_993_088, total=85_899_345_920, busy=0.97)
    lines = text_of(Top(folder)).splitlines()
    assert any("GPU memory" in line and "busy" in line for line in lines)
    assert "62.0 / 80.0 GiB    97 %" in next(line for line in lines if "trainer-0" in line)
    write_end(folder, RunEnd(0, "controller-0 finished", 0))
    assert "GiB" not in text_of(Top(folder))


def test_of_many_processes_those_in_trouble_are_named(tmp_path):
    folder = make_folder(tmp_path / "run", ranks=64, engines=32)
    lost = {
        "time": BEGAN,
        "generation": 0,
        "kind": "engine_lost",
        "message": "engine 7 is lost: its lease ran out",
    }
    append(folder.events, lost)
    text = text_of(Top(folder))
    assert "64 live" in text
    assert "31 live" in text
    assert "rollout-7" in text
    assert "its lease ran out" in text
    assert "rollout-8" not in text


def test_a_folder_that_is_no_run(tmp_path):
    answer = CliRunner().invoke(app, ["top", str(tmp_path)])
    assert answer.exit_code == 2
    assert "is not a run folder" in answer.stderr


@pytest.mark.parametrize("leave", ["q", pytest.param("ctrl-c", marks=pytest.mark.long)])
def test_in_a_terminal_it_redraws_until_it_is_left(folder, leave):
    terminal, inside = pty.openpty()
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "top", str(folder.root)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "50"}
    process = subprocess.Popen(command, stdin=inside, stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    try:
        read_until(terminal, "3/4 steps")
        append(folder.metrics, step(4))
        read_until(terminal, "4/4 steps")
        os.write(terminal, b"q") if leave == "q" else process.send_signal(signal.SIGINT)
        read_until(terminal, "\x1b[?1049l")  # the screen as it was before
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(terminal: int, words: str, within: float = 60) -> None:
    seen, deadline = "", time.monotonic() + within
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{words!r} did not appear in {seen[-2000:]!r}"
        seen += os.read(terminal, 65536).decode(errors="replace")
