"""The stack of a process on request, of one that holds the interpreter's lock too, with py-spy and without."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from verst.runtime.node.agent.stacks import answer_path, asked_path, py_spy
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process

AGENT = """
import sys
from verst.runtime.node.agent import stacks, __main__
if sys.argv.pop(1) == "without":
    stacks.py_spy = lambda: None  # as on a machine where it is not installed
__main__.main()
"""
MEMBER = "from verst.runtime.node.member_process import MemberProcess\nMemberProcess.from_command_line()\n"
STUCK = MEMBER + (
    "import re\n"
    "def a_reward_that_hangs(): re.match(r'(a+)+$', 'a' * 64 + '!')\n"  # one call in C, which never lets go
    "print('up', flush=True)\n"
    "a_reward_that_hangs()\n"
)
NOT_OURS = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"


def wait_for(condition, timeout: float = 30.0):
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"nothing within {timeout:g} s"
        time.sleep(0.05)
    return found


def member(folder: RunFolder, index: int, code: str) -> Process:
    argv = [sys.executable, "-c", code, "--run", str(folder.root), "--index", str(index)]
    return Process(role="trainer", index=index, argv=argv, on_exit="fails_run")


def asked(folder: RunFolder, name: str) -> str:
    """Asks as the dashboard does; returns the answer."""
    answer_path(folder, name).unlink(missing_ok=True)
    asked_path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    asked_path(folder, name).touch()
    wait_for(answer_path(folder, name).exists)
    assert not asked_path(folder, name).exists()
    return answer_path(folder, name).read_text()


@pytest.fixture(params=["with", pytest.param("without", marks=pytest.mark.long)])
def running(request, tmp_path) -> Iterator[tuple[str, RunFolder]]:
    if request.param == "with" and py_spy() is None:
        pytest.skip("py-spy is not installed")
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.start_generation()
    nodes = [Node(processes=[member(folder, 0, STUCK), member(folder, 1, NOT_OURS)])]
    Plan(name="test", groups={"trainer": nodes}).write(folder.plan)
    arguments = ["--run", str(folder.root), "--group", "trainer", "--node", "0", "--generation", "0"]
    command = [sys.executable, "-c", AGENT, request.param, *arguments, "--grace", "0.5"]
    agent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    logs = folder.logs / "life-0/trainer/0"
    try:
        for name in ("trainer-0", "trainer-1"):
            wait_for(lambda name=name: (log := logs / f"{name}.log").exists() and "up" in log.read_text())
        yield request.param, folder
        write_end(folder, RunEnd(0, "finished", 0))
        _, said = agent.communicate(timeout=20)
        assert agent.returncode == 0, said
    finally:
        agent.kill()
        agent.wait()


def test_the_stack_of_a_process_that_holds_the_interpreters_lock(running):
    how, folder = running
    text = asked(folder, "trainer-0")
    assert "a_reward_that_hangs" in text
    assert text.startswith("process ")
    assert ("py-spy" in text.splitlines()[0]) or how == "without" or "faulthandler" in text.splitlines()[0]
    again = asked(folder, "trainer-0")
    assert "a_reward_that_hangs" in again
    other = asked(folder, "trainer-1")  # not asked with a signal that would end it
    if how == "without":
        assert "Install py-spy" in other
    assert asked(folder, "trainer-1")  # it lives
