"""Processes that are forks of their agent: to themselves and to others they are like any other, only sooner there."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.runtime.node.test_agent import Agents, wait_for
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Process

# What the forks run. The agent finds it in its working directory, the run folder.
PROBE = """
import json, os, random, signal, sys, time
import numpy as np
import numpy.random

imported_by = os.getpid()

def main():
    doing, *more = sys.argv[1:]
    if doing == "tell":
        print(json.dumps({
            "imported_by": imported_by,
            "parent": os.getppid(),
            "group": os.getpgid(0) == os.getpid(),
            "threads": len(os.listdir("/proc/self/task")),
            "files": sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)),
            "more_files": [fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")],
            "random": [random.random(), float(np.random.random())],
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "env": dict(os.environ),
            "said": os.popen("echo $VERST_INDEX").read().strip(),
            "path": sys.path,
            "argv": sys.argv,
        }))
        time.sleep(600)
    if doing == "live twice":
        print("life")
        if os.path.exists("lived"):
            time.sleep(600)
        open("lived", "w").close()
        return 0
    if doing == "leave a child":
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("grandchild", os.getpid())
            time.sleep(600)
        time.sleep(1)
        return 1
    if doing == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if doing == "raise":
        raise LookupError("lost the plot")
    if doing == "exit":
        sys.exit("no more")
    return int(doing)
"""


@pytest.fixture
def agents(folder: RunFolder) -> Iterator[Agents]:
    (folder.root / "probe.py").write_text(PROBE)
    made = Agents(folder)
    yield made
    for process in [*made.started, *made.ours()]:
        process.kill()


def fork(index: int, *argv: str, on_exit: str = "fails_run", restarts: int = 0) -> Process:
    return Process(
        role="probe",
        index=index,
        argv=[sys.executable, "-m", "probe", *argv],
        env={"MINE": f"of {index}", "PYTHONPATH": "/nowhere/here"},
        on_exit=on_exit,  # type: ignore[arg-type]
        max_restarts=restarts,
        forks=True,
    )


def told(agents: Agents, index: int) -> dict[str, Any]:
    return json.loads(agents.wait_log(f"probe-{index}", "}\n"))


def test_a_fork_is_as_if_started_anew(agents: Agents) -> None:
    agents.plan(trainer=[fork(0, "tell", "me"), fork(1, "tell", "me", "more")])
    agent = agents.start()
    first, second = told(agents, 0), told(agents, 1)
    for index, each in enumerate((first, second)):
        assert each["imported_by"] == each["parent"] == agent.pid
        assert each["group"]
        assert each["threads"] == 1
        assert each["blocked"] == []
        assert each["files"] == ["/dev/null", *[str(agents.log(f"probe-{index}"))] * 2]
        assert each["more_files"] == []
        assert (each["env"]["MINE"], each["env"]["VERST_INDEX"]) == (f"of {index}", str(index))
        assert each["said"] == str(index)  # what it starts itself has the environment too
        assert "/nowhere/here" in each["path"]
        assert each["argv"] == [str(agents.folder.root / "probe.py"), *["tell", "me", "more"][: 2 + index]]
    assert all(a != b for a, b in zip(first["random"], second["random"], strict=True))
    shown = {process.environ()["VERST_INDEX"]: process for process in agents.ours()}
    assert sorted(shown) == ["0", "1"]
    assert " ".join(shown["1"].cmdline()).strip() == f"{sys.executable} -m probe tell me more"
    agent.send_signal(signal.SIGTERM)
    agent.communicate(timeout=20)
    assert agents.ours() == []


@pytest.mark.parametrize(
    ("doing", "code", "ending", "log"),
    [
        ("3", 3, "exit code 3", ""),
        ("raise", 1, "exit code 1", "LookupError: lost the plot"),
        ("exit", 1, "exit code 1", "no more"),
        ("crash", 128 + signal.SIGSEGV, "killed by SIGSEGV", ""),
    ],
)
def test_the_end_of_a_fork_is_told_as_any_other(
    agents: Agents, doing: str, code: int, ending: str, log: str
) -> None:
    agents.plan(trainer=[fork(0, doing)])
    agent = agents.start()
    _, said = agent.communicate(timeout=20)
    assert agent.returncode == code
    assert f"probe-0 on node trainer/0 failed: {ending}" in said
    assert log in agents.log("probe-0").read_text()


def test_a_killed_agent_takes_its_forks_with_it(agents: Agents) -> None:
    agents.plan(trainer=[fork(0, "tell"), fork(1, "tell")])
    agent = agents.start()
    told(agents, 0), told(agents, 1)
    agent.kill()
    wait_for(lambda: agents.ours() == [])


def test_what_a_fork_left_behind_is_gone_before_its_next_life(agents: Agents) -> None:
    agents.plan(trainer=[fork(0, "leave a child", on_exit="restart", restarts=1)])
    agents.start()
    grandchild = int(agents.wait_log("probe-0", "grandchild").split()[1])
    wait_for(lambda: agents.folder.events.exists() and agents.events("process_restarted"))
    wait_for(lambda: not psutil.pid_exists(grandchild))


def test_what_is_always_restarted_is_so_after_a_good_end_too(agents: Agents) -> None:
    agents.plan(trainer=[fork(0, "live twice", on_exit="restart_always")])
    agent = agents.start()
    wait_for(lambda: agents.log("probe-0").exists() and agents.log("probe-0").read_text() == "life\nlife\n")
    [event] = agents.events("process_restarted")
    assert (event["process"], event["ending"], event["restart"]) == ("probe-0", "exit code 0", 1)
    assert agent.poll() is None
