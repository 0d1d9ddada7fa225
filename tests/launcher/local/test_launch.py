"""A local run ends as a whole: whatever happens, nothing of it is left, and the user learns why.

Real torchx, real node agents; the plan's processes are small programs that sleep or crash.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process

GONE_WITHIN_S = 15.0

# What `verst run` does after planning, with a plan of the test's own.
LAUNCH = """
import sys
from pathlib import Path
from verst.launcher.local.commands import launch_and_show
from verst.runtime.run.plan import Plan
from verst.runtime.run.folder import RunFolder
folder = RunFolder(sys.argv[1])
sys.exit(launch_and_show(folder, Plan.read(folder.plan)))
"""

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
# A grandchild in a session of its own, as SGLang's processes might be.
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEP!r}, sys.argv[1]], start_new_session=True)
time.sleep(600)
"""
CRASH = "import time; time.sleep(1); print('the disk is full'); raise ValueError('no room for step 7')"
FINISH = "import time; time.sleep(1)"


def process(role: str, index: int, program: str, tag: str, **settings: object) -> Process:
    return Process(role=role, index=index, argv=[sys.executable, "-c", program, tag], **settings)  # type: ignore[arg-type]


def make_run(
    tmp_path: Path, controller: str, rank: str = SLEEP, worker: str = SLEEP
) -> tuple[RunFolder, str]:
    """A run folder whose plan has three processes on two nodes; all carry the tag on their command line."""
    tag = f"tag-{tmp_path.name}-{os.getpid()}"
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.recipe.write_text("name: test\nalgorithm: {steps: 3}\n")
    trainer = Node(
        processes=[
            process("controller", 0, controller, tag, on_exit="ends_run"),
            process("trainer", 0, rank, tag),
        ]
    )
    rollout = Node(processes=[process("rollout", 0, worker, tag, on_exit="restart", max_restarts=1)])
    Plan(name="test", groups={"trainer": [trainer], "rollout": [rollout]}).write(folder.plan)
    folder.start_generation()
    return folder, tag


def alive(folder: RunFolder, tag: str) -> list[str]:
    """Processes of the run, agents included, that are there."""
    found = []
    for candidate in psutil.process_iter(["cmdline", "status"]):
        command = candidate.info["cmdline"] or []
        if candidate.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        if tag in command or ("verst.runtime.node.agent" in command and str(folder.root) in command):
            found.append(" ".join(command))
    return found


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture
def start() -> Iterator[Callable[[RunFolder], subprocess.Popen[str]]]:
    """Starts the launcher in a process of its own, and ends it if the test fails."""
    launchers = []

    def start_(folder: RunFolder) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LAUNCH, str(folder.root)]
        launchers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return launchers[-1]

    yield start_
    for launcher in launchers:
        launcher.kill()
        launcher.wait()


def test_good_end_exits_zero_and_ends_the_processes_that_would_go_on(tmp_path, start):
    folder, tag = make_run(tmp_path, FINISH)
    launcher = start(folder)
    out, err = launcher.communicate(timeout=40)
    assert launcher.returncode == 0, err
    assert "wall time" in out
    assert alive(folder, tag) == []


def test_crash_ends_the_siblings_and_shows_the_last_lines(tmp_path, start):
    folder, tag = make_run(tmp_path, SLEEP, rank=CRASH, worker=STUBBORN)
    began = time.monotonic()
    launcher = start(folder)
    _, err = launcher.communicate(timeout=40)
    assert time.monotonic() - began < 1 + 3 + GONE_WITHIN_S  # the crash itself comes after about a second
    assert launcher.returncode == 1
    assert "trainer-0 on node trainer/0 failed: exit code 1" in err
    assert "the disk is full" in err
    assert "ValueError: no room for step 7" in err
    assert f"`verst resume {folder.root}`" in err
    assert alive(folder, tag) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_everything_in_time(tmp_path, start, number, code):
    folder, tag = make_run(tmp_path, SLEEP, rank=PARENT, worker=STUBBORN)
    launcher = start(folder)
    wait_until(lambda: len(alive(folder, tag)) >= 6, 20, "two agents, three processes and a grandchild")
    began = time.monotonic()
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=30)
    assert time.monotonic() - began < GONE_WITHIN_S
    assert launcher.returncode == code
    assert f"received {signal.Signals(number).name}" in err
    assert alive(folder, tag) == []


def test_launcher_killed_leaves_no_orphan(tmp_path, start):
    folder, tag = make_run(tmp_path, SLEEP, rank=PARENT)
    launcher = start(folder)
    wait_until(lambda: len(alive(folder, tag)) >= 6, 20, "two agents, three processes and a grandchild")
    launcher.kill()
    wait_until(lambda: alive(folder, tag) == [], GONE_WITHIN_S, "all processes of the run are gone")


def test_agent_killed_ends_the_run_and_is_named(tmp_path, start):
    folder, tag = make_run(tmp_path, SLEEP, worker=PARENT)
    launcher = start(folder)
    wait_until(lambda: len(alive(folder, tag)) >= 6, 20, "two agents, three processes and a grandchild")
    for candidate in psutil.process_iter(["cmdline"]):
        command = candidate.info["cmdline"] or []
        if "verst.runtime.node.agent" in command and str(folder.root) in command and "rollout" in command:
            candidate.kill()
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert "the node agent of rollout node 0 died without giving a reason" in err
    assert alive(folder, tag) == []
