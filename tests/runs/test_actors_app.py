"""An app of actors on this machine, through the command: it runs, survives a death, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.runs.verst_run import ROOT

APP = """
name: app
main: tests.runs.actors_for_tests:{main}
actors:
  worker: {{actor: tests.runs.actors_for_tests:Worker, count: 2, after: [ledger]}}
  ledger: {{actor: tests.runs.actors_for_tests:Ledger, max_restarts: 1,
           arguments: {{file: {file}}}}}
"""


def start(tmp_path: Path, main: str, ledger: str = "") -> subprocess.Popen[str]:
    file = tmp_path / ledger / "ledger" if ledger else tmp_path / "ledger"
    (tmp_path / "app.yaml").write_text(APP.format(main=main, file=file))
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", "actors", "run", str(tmp_path / "app.yaml")]
    return subprocess.Popen(
        [*command, f"runs_dir={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def processes_of(tmp_path: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_app_runs_its_main_function_and_starts_a_dead_actor_again(tmp_path: Path) -> None:
    process = start(tmp_path, "main")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert (tmp_path / "ledger").read_text().splitlines() == [
        "squares [49, 49]",
        "lost worker-1",
        "another True",
    ]
    events = [json.loads(line) for line in (tmp_path / "app/events.jsonl").read_text().splitlines()]
    restarts = [(e["process"], e["ending"], e["restart"]) for e in events if e["kind"] == "process_restarted"]
    assert restarts == [("worker-1", "exit code 3", 1)]
    assert not processes_of(tmp_path)
    said = verst("status", tmp_path / "app")
    assert f"{tmp_path}/app: finished, life 0" in said
    assert {name: state for name, (state, *_) in table(said).items()} == {
        "main-0": "ended",
        "worker-0": "ended",
        "worker-1": "ended",
        "ledger-0": "ended",
    }
    assert table(said)["worker-1"][-4:] == ["1", "exit", "code", "3"]
    assert "failed first: worker-1 on node actors/0 failed: exit code 3; restart 1 (" in said
    assert "told to die" in said
    assert "exists; remove it" in verst("actors", "run", tmp_path / "app.yaml", f"runs_dir={tmp_path}")
    assert "serves tests.runs.actors_for_tests:Worker" in verst("logs", tmp_path / "app")


def table(said: str) -> dict[str, list[str]]:
    """The words behind each actor's name in what `verst status` says."""
    rows = (line.split() for line in said.splitlines())
    return {row[0]: row[1:] for row in rows if row and re.fullmatch(r"(main|worker|ledger)-\d", row[0])}


def verst(*arguments: str | Path) -> str:
    """What a command prints."""
    command = [sys.executable, "-P", "-m", "verst.launcher.cli", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.stdout + done.stderr


@pytest.mark.long
def test_an_actor_that_waits_for_another_hears_the_end(tmp_path: Path) -> None:
    """The ledger cannot start: the workers, which wait for it, must not hold up the end."""
    process = start(tmp_path, "main", ledger="nowhere")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "ledger-0 on node actors/0 failed: exit code 1 after 1 restarts" in said
    status = verst("status", tmp_path / "app")
    assert table(status)["ledger-0"][0] == "failed"
    assert "failed first: ledger-0 on node actors/0 failed: exit code 1; restart 1" in status
    assert "FileNotFoundError" in status
    logs = tmp_path / "app/logs/life-0/actors/0"
    assert "Traceback" not in (logs / "worker-0.log").read_text()
    assert not processes_of(tmp_path)


def test_ctrl_c_ends_an_app_without_an_end_of_its_own(tmp_path: Path) -> None:
    process = start(tmp_path, "until_stopped")
    deadline = time.monotonic() + 60
    ledger = tmp_path / "ledger"
    while not ledger.exists() or not ledger.read_text():  # its first line comes once all are there
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.1)
    status = verst("status", tmp_path / "app")
    assert f"{tmp_path}/app: running, life 0" in status
    assert [table(status)[name][0] for name in ("main-0", "ledger-0", "worker-0", "worker-1")] == ["live"] * 4
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 15
    assert process.returncode == 130, said
    assert not processes_of(tmp_path)
    # The ledger, which the workers come after, left after them.
    logs = tmp_path / "app/logs/life-0/actors/0"
    assert {path.stem for path in logs.glob("*.log")} == {"main-0", "ledger-0", "worker-0", "worker-1"}
    assert not [path for path in logs.glob("*.log") if "Traceback" in path.read_text()]
