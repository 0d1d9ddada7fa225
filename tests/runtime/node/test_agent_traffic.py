"""What a node agent costs the shared file system: the same few small files at each look, whatever the run's size."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Plan, Process

POLL_S = 0.1
WARM_S, COUNTED_S = 0.5, 1.5
# The agent with a cluster's options, as `launcher/slurm/job.py` makes it; prints each file-system call with its time.
AGENT = f"""
import json, os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGUSR2, signal.SIGTERM}})
from verst.runtime.node.agent import Agent
from verst.runtime.run.folder import RunFolder
calls = []
AUDITED = ("open", "os.listdir", "os.scandir", "os.utime", "os.rename", "os.remove", "os.mkdir")
def audit(event, args):
    if event in AUDITED:
        calls.append((time.monotonic(), event, str(args[0])))
sys.addaudithook(audit)
def noting(name):
    real = getattr(os, name)
    def call(path, *args, **kwargs):
        calls.append((time.monotonic(), name, str(path)))
        return real(path, *args, **kwargs)
    return call
for name in ("stat", "lstat", "access"):  # Python audits none of these
    setattr(os, name, noting(name))
began = time.monotonic()
agent = Agent(
    RunFolder(sys.argv[1]), sys.argv[2], 0, 0, poll_s={POLL_S}, max_failures=3, follows=sys.argv[2] == "rollout",
    soft_signals={{signal.SIGUSR2: 100.0, signal.SIGTERM: 25.0}}, claim="1234.0",
)
agent.run()
print(json.dumps([(at - began, what, path) for at, what, path in calls]))
"""
SLEEP = "import time; time.sleep(600)"
READ = {
    "trainer": ["life", "agents/trainer-0", "cancelled", "ended"],  # its controller's node leads
    "rollout": ["life", "agents/rollout-0", "ended"],
}


def calls_of(folder: RunFolder, group: str) -> list[tuple[str, str]]:
    """What an agent of the group did in its steady state, in order: (call, path)."""
    agent = subprocess.Popen(
        [sys.executable, "-c", AGENT, str(folder.root), group],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder.root,
    )
    try:
        log = folder.logs / "life-0" / group / "0"
        deadline = time.monotonic() + 20
        while not log.exists():
            assert time.monotonic() < deadline, "the agent has started nothing within 20 s"
            time.sleep(0.05)
        time.sleep(WARM_S + COUNTED_S + 0.5)
        write_end(folder, RunEnd(0, "finished", 0))
        out, stderr = agent.communicate(timeout=20)
    finally:
        agent.kill()
    assert agent.returncode == 0, stderr
    return [(what, path) for at, what, path in json.loads(out) if WARM_S <= at < WARM_S + COUNTED_S]


@pytest.mark.parametrize(("group", "members"), [("trainer", 0), ("trainer", 500), ("rollout", 500)])
def test_an_agent_opens_its_few_files_at_each_look_and_touches_nothing_else(
    tmp_path: Path, group: str, members: int
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.start_generation("1234.0")
    argv = [sys.executable, "-c", SLEEP]
    controller = Process(role="controller", index=0, argv=argv, on_exit="ends_run")
    engine = Process(role="rollout", index=0, argv=argv, on_exit="restart", max_restarts=3)
    nodes = {"trainer": [Node(processes=[controller])], "rollout": [Node(processes=[engine])]}
    Plan(name="test", groups=nodes).write(folder.plan)
    folder.claim(group, 0, "1234.0")
    for index in range(members):
        (folder.members / f"rollout-{index}.json").write_text("{}")

    calls = calls_of(folder, group)
    asked = [path for what, path in calls if what == "os.listdir"]
    assert set(asked) <= {str(folder.root / "stacks/asked")}  # is anybody asking for a stack?
    assert len(asked) <= 2  # every two seconds
    calls = [call for call in calls if call[0] != "os.listdir"]
    counts = Counter(path for _, path in calls)
    assert {what for what, _ in calls} == {"open"}
    assert set(counts) == {str(folder.root / name) for name in READ[group]}
    looks = max(counts.values())
    assert 5 <= looks <= COUNTED_S / POLL_S + 1
    assert all(looks - 1 <= count <= looks for count in counts.values())  # the window may cut through one
    assert len(calls) <= 4 * looks
