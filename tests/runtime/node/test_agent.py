"""The node agent with real processes: what an end means, and that nothing is ever left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.small_disk import SmallDisk
from verst.runtime.run.ending import RunEnd, read_end, write_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.plan import Node, Pin, Plan, Process

SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time\n"
    "for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
    "print('up'); time.sleep(600)"
)
# A child in a session of its own, which ignores SIGTERM, and whose parent does not wait for it.
FAMILY = (
    "import subprocess, sys, time\n"
    f"p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)\n"
    "print('grandchild', p.pid)\n"
    "time.sleep(600)\n"
)


class Agents:
    """Starts agents on a plan, and kills what a failed test has left."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def plan(self, **groups: list[Process]) -> None:
        nodes = {name: [Node(processes=processes)] for name, processes in groups.items()}
        Plan(name="test", groups=nodes).write(self.folder.plan)

    def start(self, group: str = "trainer", generation: int = 0, grace: float = 2.0) -> subprocess.Popen[str]:
        argv = [
            sys.executable,
            "-m",
            "verst.runtime.node.agent",
            "--run",
            str(self.folder.root),
            "--group",
            group,
        ]
        argv += ["--node", "0", "--generation", str(generation), "--grace", str(grace)]
        agent = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd=self.folder.root)
        self.started.append(agent)
        return agent

    def log(self, name: str, group: str = "trainer") -> Path:
        return self.folder.logs / "life-0" / group / "0" / f"{name}.log"

    def wait_log(self, name: str, text: str, group: str = "trainer") -> str:
        return wait_for(lambda: _text_with(self.log(name, group), text))

    def ours(self) -> list[psutil.Process]:
        """Every living process of this run, found by its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("VERST_RUN") == str(self.folder.root):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def events(self, kind: str) -> list[dict[str, object]]:
        lines = self.folder.events.read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture
def agents(folder: RunFolder) -> Iterator[Agents]:
    agents = Agents(folder)
    yield agents
    for process in [*agents.started, *agents.ours()]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends at this moment
            process.kill()


def process(
    index: int, code: str, on_exit: str = "fails_run", role: str = "trainer", restarts: int = 0
) -> Process:
    return Process(
        role=role,
        index=index,
        argv=[sys.executable, "-c", code],
        on_exit=on_exit,  # type: ignore[arg-type]
        max_restarts=restarts,
    )


def wait_for(condition, timeout: float = 15.0):
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing within 15 s"
        time.sleep(0.05)
    return found


def _text_with(path: Path, text: str) -> str:
    content = path.read_text() if path.exists() else ""
    return content if text in content else ""


def test_a_crash_ends_the_others_and_shows_which_process_failed_with_its_last_lines(agents: Agents) -> None:
    crash = "import time; time.sleep(0.5); print('about to fail'); raise SystemExit(3)"
    agents.plan(trainer=[process(0, FAMILY), process(1, crash), process(2, STUBBORN)])
    agent = agents.start()
    started = time.monotonic()
    _, stderr = agent.communicate(timeout=15)
    assert agent.returncode == 3
    assert time.monotonic() - started < 15
    assert "trainer-1 on node trainer/0 failed: exit code 3" in stderr
    assert "| about to fail" in stderr
    assert agents.ours() == []
    [event] = agents.events("process_failed")
    assert event["lines"] == ["about to fail"]
    assert event["reason"] == "trainer-1 on node trainer/0 failed: exit code 3"


REASON = (
    "prompt group 4: reward function 'm:f', sample 2 of group 4: raised KeyError: 'x' (/home/me/m.py:3, in f)"
)
CONTROLLER = f"""
import sys
from verst.runtime.node.member_process import say
say("the run failed: " + {REASON!r} + chr(10) + "Remote traceback:" + chr(10) * 60 + "  its end")
sys.exit(65)
"""


def test_the_headline_is_the_reason_that_the_controller_gave(agents: Agents) -> None:
    agents.plan(trainer=[process(0, CONTROLLER, "ends_run", "controller"), process(0, SLEEP)])
    agent = agents.start()
    _, stderr = agent.communicate(timeout=25)
    assert agent.returncode == 65
    end = read_end(agents.folder, 0)
    assert end is not None
    assert (end.reason, end.resumes) == (REASON, False)
    [event] = agents.events("process_failed")
    assert (event["reason"], event["process"], event["first"]) == (REASON, "controller-0", True)
    assert f"verst agent trainer/0: {REASON}" in stderr


def test_the_headline_of_a_crash_has_the_exception(agents: Agents) -> None:
    agents.plan(trainer=[process(0, "print('up'); raise KeyError('weights')"), process(1, SLEEP)])
    agents.start().communicate(timeout=15)
    end = read_end(agents.folder, 0)
    assert end is not None
    assert end.reason == "trainer-0 on node trainer/0 failed: exit code 1: KeyError: 'weights'"


def test_a_fault_of_the_recipe_is_not_started_again(agents: Agents) -> None:
    worker = "import sys; print('verst: reward function m:f: importing it failed'); sys.exit(65)"
    agents.plan(rollout=[process(0, worker, "restart", "rollout", restarts=3)])
    agent = agents.start("rollout")
    began = time.monotonic()
    agent.communicate(timeout=15)
    end = read_end(agents.folder, 0)
    assert end is not None
    assert (agent.returncode, end.code, end.reason) == (65, 65, "reward function m:f: importing it failed")
    assert agents.events("process_restarted") == []
    assert time.monotonic() - began < 10


MEMBER = """
import asyncio, os, sys
from verst.runtime.actors.watchdog import watch
def hold():
    print("holding", flush=True)
    return 10 ** (10**9)  # for minutes, with Python's lock
async def main():
    stop = watch("worker", 0.8)
    await asyncio.sleep(1)
    print("up", flush=True)
    if sys.argv[1:] == ["stopped"]:
        await asyncio.sleep(600)
    hold()
asyncio.run(main())
"""


def test_a_process_that_holds_pythons_lock_is_ended_from_outside_with_its_stack(agents: Agents) -> None:
    agents.plan(rollout=[process(0, MEMBER, "restart", "rollout", restarts=1)])
    agent = agents.start("rollout")
    agent.communicate(timeout=60)
    log = agents.log("rollout-0", "rollout").read_text()
    assert log.count("holding") == 2, "it was started again once"
    assert ", line 6 in hold" in log
    (restart,) = agents.events("process_restarted")
    assert str(restart["ending"]).startswith("its event loop hung for ")
    end = read_end(agents.folder, 0)
    assert end is not None
    assert "rollout-0 on node rollout/0 failed: its event loop hung for" in end.reason
    assert end.code == 137


def test_a_process_that_was_stopped_for_a_while_has_not_hung(agents: Agents) -> None:
    agents.plan(rollout=[process(0, MEMBER.replace("sys.argv[1:]", '["stopped"]'), "restart", "rollout")])
    agent = agents.start("rollout")
    agents.wait_log("rollout-0", "up", "rollout")
    (member,) = [
        p for p in agents.ours() if p.pid != agent.pid and "rollout" in p.environ().get("VERST_ROLE", "")
    ]
    member.suspend()
    time.sleep(4)
    member.resume()
    time.sleep(2)
    assert agent.poll() is None
    assert member.is_running()
    assert agents.events("process_restarted") == [] if agents.folder.events.exists() else True


def test_the_cause_is_named_and_not_the_echo_that_was_noticed_before_it(agents: Agents) -> None:
    echo = "import sys, time; time.sleep(0.5); sys.exit('RuntimeError: Connection reset by peer')"
    cause = "import time; time.sleep(0.7); print('CUDA out of memory'); raise SystemExit(3)"
    agents.plan(trainer=[process(0, echo), process(1, cause), process(2, SLEEP)])
    agent = agents.start()
    agent.communicate(timeout=15)
    assert agent.returncode == 3
    end = read_end(agents.folder, 0)
    assert end is not None
    assert end.reason == "trainer-1 on node trainer/0 failed: exit code 3"
    first, second = agents.events("process_failed")
    assert (first["process"], first["first"], first["echo"]) == ("trainer-1", True, False)
    assert (second["process"], second["first"], second["echo"]) == ("trainer-0", False, True)
    assert second["lines"] == ["RuntimeError: Connection reset by peer"]


def test_a_log_beyond_its_limit_is_set_aside_while_its_writer_goes_on(agents: Agents) -> None:
    chatter = "import time\nfor n in range(60): print('line', n, 'x' * 100, flush=True); time.sleep(0.02)"
    argv = [sys.executable, "-c", chatter]
    leader = Process(role="controller", index=0, argv=argv, on_exit="ends_run")
    nodes = {"trainer": [Node(processes=[leader])]}
    Plan(name="test", groups=nodes, log_bytes=2000, logs_kept=9).write(agents.folder.plan)
    program = (
        "import sys\n"
        "from verst.runtime.node.agent import Agent, log_limits\n"
        "from verst.runtime.run.folder import RunFolder\n"
        "log_limits.EVERY_S = 0.1\n"
        "sys.exit(Agent(RunFolder(sys.argv[1]), 'trainer', 0, 0, poll_s=0.05).run().code)\n"
    )
    argv = [sys.executable, "-c", program, str(agents.folder.root)]
    agent = subprocess.Popen(argv, cwd=agents.folder.root, text=True)
    agents.started.append(agent)
    assert agent.wait(20) == 0
    log = agents.log("controller-0")
    aside = sorted(log.parent.glob("controller-0.log.*"), reverse=True)
    assert len(aside) >= 2
    lines = [line for path in [*aside, log] for line in path.read_text().splitlines()]
    assert [int(line.split()[1]) for line in lines] == list(range(60))
    assert max(path.stat().st_size for path in [*aside, log]) < 6000


def test_a_signal_is_named_in_words(agents: Agents) -> None:
    agents.plan(trainer=[process(0, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")])
    agent = agents.start()
    _, stderr = agent.communicate(timeout=15)
    assert agent.returncode == 128 + signal.SIGSEGV
    assert "killed by SIGSEGV (Segmentation fault)" in stderr


def test_a_command_that_does_not_exist_fails_the_run_by_name(agents: Agents) -> None:
    agents.plan(trainer=[process(0, SLEEP), Process(role="store", index=0, argv=["/no/such/program"])])
    agent = agents.start()
    _, stderr = agent.communicate(timeout=15)
    assert agent.returncode == 127
    assert "store-0 cannot be started: /no/such/program: No such file or directory" in stderr
    assert agents.ours() == []


def test_the_good_end_of_the_controller_ends_every_group_with_0(agents: Agents) -> None:
    controller = process(0, "import time; time.sleep(1.5)", on_exit="ends_run", role="controller")
    agents.plan(trainer=[controller, process(0, SLEEP)], rollout=[process(0, SLEEP, role="rollout")])
    trainer, rollout = agents.start("trainer"), agents.start("rollout")
    assert trainer.wait(15) == 0
    assert rollout.wait(15) == 0
    assert agents.ours() == []
    assert read_end(agents.folder, 0) == RunEnd(0, "controller-0 finished", 0)


def test_a_failure_in_one_group_ends_the_others_with_the_same_code(agents: Agents) -> None:
    agents.plan(
        trainer=[process(0, "import time; time.sleep(1); raise SystemExit(9)")],
        rollout=[process(0, SLEEP, role="rollout")],
    )
    trainer, rollout = agents.start("trainer"), agents.start("rollout")
    assert trainer.wait(15) == 9
    _, stderr = rollout.communicate(timeout=15)
    assert rollout.returncode == 9
    assert "the run has ended: trainer-0 on node trainer/0 failed: exit code 9" in stderr


def test_a_rank_that_exits_with_0_just_before_the_controller_is_no_failure(agents: Agents) -> None:
    controller = process(0, "import time; time.sleep(1.5)", on_exit="ends_run", role="controller")
    agents.plan(trainer=[controller, process(0, "print('done')")])
    assert agents.start().wait(15) == 0


def test_a_rank_that_exits_with_0_while_the_run_goes_on_fails_it_after_a_while(agents: Agents) -> None:
    agents.plan(trainer=[process(0, "print('done')"), process(1, SLEEP)])
    program = (
        "import sys\n"
        "from verst.runtime.node.agent import Agent\n"
        "from verst.runtime.run.folder import RunFolder\n"
        "sys.exit(Agent(RunFolder(sys.argv[1]), 'trainer', 0, 0, early_exit_s=1.0).run().code)\n"
    )
    argv = [sys.executable, "-c", program, str(agents.folder.root)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, cwd=agents.folder.root)
    assert done.returncode == 1
    assert "trainer-0 on node trainer/0 failed: exit code 0, but the run went on" in done.stderr
    assert agents.ours() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_leaves_no_orphan_not_even_grandchildren(
    agents: Agents, number: signal.Signals
) -> None:
    agents.plan(trainer=[process(0, FAMILY), process(1, STUBBORN)])
    agent = agents.start()
    agents.wait_log("trainer-0", "up")
    agents.wait_log("trainer-1", "up")
    assert len(agents.ours()) == 3
    sent = time.monotonic()
    agent.send_signal(number)
    assert agent.wait(12) == 128 + number
    assert 2.0 < time.monotonic() - sent < 6.0  # the stubborn ones had their grace
    assert agents.ours() == []


def test_children_that_obey_are_not_waited_for_through_the_grace(agents: Agents) -> None:
    agents.plan(trainer=[process(0, "print('up'); " + SLEEP)])
    agent = agents.start(grace=8.0)
    agents.wait_log("trainer-0", "up")
    sent = time.monotonic()
    agent.terminate()
    assert agent.wait(12) == 143
    assert time.monotonic() - sent < 3.0


def test_what_a_child_leaves_behind_is_not_waited_for_through_the_grace(agents: Agents) -> None:
    """Megatron's checkpoints start a helper process that waits for work for ever."""
    agents.plan(trainer=[process(0, FAMILY)])
    agent = agents.start(grace=8.0)
    agents.wait_log("trainer-0", "up")
    sent = time.monotonic()
    agent.terminate()
    assert agent.wait(12) == 143
    assert time.monotonic() - sent < 4.0
    assert agents.ours() == []


def test_a_killed_agent_takes_its_children_with_it(agents: Agents) -> None:
    agents.plan(trainer=[process(0, STUBBORN), process(1, STUBBORN)])
    agent = agents.start()
    agents.wait_log("trainer-1", "up")
    agents.wait_log("trainer-0", "up")
    agent.kill()
    wait_for(lambda: agents.ours() == [])


def test_a_process_is_restarted_within_its_budget_and_then_fails_the_run(agents: Agents) -> None:
    engine = process(0, "print('life'); raise SystemExit(7)", "restart", "rollout", restarts=2)
    agents.plan(rollout=[engine])
    agent = agents.start("rollout")
    _, stderr = agent.communicate(timeout=20)
    assert agent.returncode == 7
    assert agents.log("rollout-0", "rollout").read_text().count("life") == 3
    assert [event["restart"] for event in agents.events("process_restarted")] == [1, 2]
    assert "failed: exit code 7 after 2 restarts" in stderr


def test_what_a_restarted_process_left_behind_is_gone_before_its_next_life(agents: Agents) -> None:
    engine = process(
        0, FAMILY.replace("time.sleep(600)", "time.sleep(1); sys.exit(1)"), "restart", "rollout", 1
    )
    agents.plan(rollout=[engine])
    agents.start("rollout")
    first = agents.wait_log("rollout-0", "grandchild", "rollout")
    grandchild = int(first.split("grandchild")[1].split()[0])
    wait_for(lambda: agents.folder.events.exists() and agents.events("process_restarted"))
    wait_for(lambda: not psutil.pid_exists(grandchild))


def test_an_agent_of_an_earlier_generation_stops_everything(agents: Agents) -> None:
    agents.plan(trainer=[process(0, "print('up'); " + SLEEP)])
    agent = agents.start()
    agents.wait_log("trainer-0", "up")
    agents.folder.start_generation()
    _, stderr = agent.communicate(timeout=15)
    assert agent.returncode == 75
    assert "life 1 of the run has begun" in stderr
    assert agents.ours() == []


def test_the_end_of_an_earlier_generation_does_not_end_this_one(folder: RunFolder) -> None:
    write_end(folder, RunEnd(1, "a rank failed", 0))
    assert read_end(folder, 1) is None
    assert write_end(folder, RunEnd(0, "finished", 1)) == RunEnd(0, "finished", 1)
    assert write_end(folder, RunEnd(5, "too late", 1)) == RunEnd(0, "finished", 1)


def test_processes_know_who_they_are_and_write_logs_for_their_owner_alone(agents: Agents) -> None:
    show = "import os; print({k: v for k, v in os.environ.items() if k.startswith('VERST_')}); " + SLEEP
    agents.plan(trainer=[process(3, show)])
    agents.start()
    said = agents.wait_log("trainer-3", "VERST_INDEX")
    assert "'VERST_ROLE': 'trainer'" in said
    assert "'VERST_INDEX': '3'" in said
    assert "'VERST_GENERATION': '0'" in said
    assert os.stat(agents.log("trainer-3")).st_mode & 0o777 == 0o600


def test_an_agent_that_fails_itself_ends_the_run_for_the_others(agents: Agents) -> None:
    agents.plan(trainer=[process(0, SLEEP)])
    (agents.folder.logs / "life-0").write_text("a file where the log folder should be")
    agent = agents.start()
    _, stderr = agent.communicate(timeout=15)
    assert agent.returncode == 1
    end = read_end(agents.folder, 0)
    assert end is not None
    assert "the node agent trainer/0 failed: NotADirectoryError" in end.reason
    assert "NotADirectoryError" in stderr


def test_a_group_or_node_that_the_plan_lacks_is_named(agents: Agents) -> None:
    agents.plan(trainer=[process(0, SLEEP)])
    agent = agents.start("trainers")
    _, stderr = agent.communicate(timeout=15)
    assert agent.returncode == 1
    assert "has no group 'trainers'; it has: trainer" in stderr


def test_a_failure_on_a_full_disk_is_told_with_the_disk_and_nothing_is_left(small_disk: SmallDisk) -> None:
    small_disk.mount(512)
    run = RunFolder(small_disk.path / "run")
    run.create()
    run.start_generation()
    agents = Agents(run)
    fill = "import sys\ntry: print('x' * 900000)\nexcept OSError: sys.exit(74)"
    agents.plan(trainer=[process(0, fill, role="store"), process(0, FAMILY)])
    try:
        agent = agents.start()
        _, stderr = agent.communicate(timeout=15)
        assert agents.ours() == []
    finally:
        for left in [*agents.started, *agents.ours()]:
            left.kill()
    assert agent.returncode == 74
    end = read_end(run, 0)
    assert end is not None
    full = f"No space left on device: {run.root}"
    assert "store-0 on node trainer/0 failed: exit code 74, " in end.reason
    assert end.reason.endswith(f"; its run folder cannot be written ({full})")
    assert end.reason in stderr


def test_an_agent_whose_own_log_is_on_the_full_disk_ends_the_run_all_the_same(small_disk: SmallDisk) -> None:
    small_disk.mount(256)
    run = RunFolder(small_disk.path / "run")
    run.create()
    run.start_generation()
    agents = Agents(run)
    agents.plan(trainer=[process(0, "print('up'); " + SLEEP)])
    argv = [sys.executable, "-m", "verst.runtime.node.agent", "--run", str(run.root), "--group", "trainer"]
    with (small_disk.path / "agent.log").open("w") as log:
        agent = subprocess.Popen(
            [*argv, "--node", "0", "--generation", "0"], stderr=log, cwd=run.root, env=os.environ
        )
    try:
        agents.started.append(agent)  # type: ignore[arg-type]
        agents.wait_log("trainer-0", "up")
        small_disk.fill()
        [child] = agents.ours()
        child.kill()
        agent.wait(15)
        assert agents.ours() == []
    finally:
        for left in [*agents.started, *agents.ours()]:
            left.kill()
    end = read_end(run, 0)
    assert end is not None
    assert "trainer-0 on node trainer/0 failed: killed by SIGKILL" in end.reason
    assert "No space left on device" in end.reason


def test_a_leader_that_was_not_listening_yet_is_asked_to_stop_again(agents: Agents) -> None:
    """It ignores the first signal, as a Python that is still importing does."""
    late = (
        "import signal, sys, time\n"
        "print('up', flush=True); time.sleep(1)\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75)); time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", late]
    agents.plan(trainer=[Process(role="controller", index=0, argv=argv, on_exit="ends_run")])
    program = (
        "import signal, sys\n"
        "from verst.runtime.node.agent import Agent\n"
        "from verst.runtime.run.folder import RunFolder\n"
        "soft = {signal.SIGUSR2: 20.0}\n"
        "sys.exit(Agent(RunFolder(sys.argv[1]), 'trainer', 0, 0, soft_signals=soft).run().code)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program, str(agents.folder.root)], cwd=agents.folder.root)
    agents.started.append(agent)
    agents.wait_log("controller-0", "up")
    agent.send_signal(signal.SIGUSR2)
    assert agent.wait(10) == 75
    end = read_end(agents.folder, 0)
    assert end is not None
    assert end.resumes


def test_an_agent_cut_off_from_the_run_folder_ends_itself(agents: Agents) -> None:
    agents.plan(trainer=[process(0, "print('up', flush=True); " + SLEEP)])
    agents.folder.claim("trainer", 0, "12.0")
    program = (
        "import sys\n"
        "from verst.runtime.node.agent import Agent\n"
        "from verst.runtime.run.folder import RunFolder\n"
        "agent = Agent(RunFolder(sys.argv[1]), 'trainer', 0, 0, poll_s=0.1, claim='12.0', lease_s=1.0)\n"
        "outcome = agent.run()\n"
        "sys.exit(outcome.code if outcome.why == 'fenced' else 1)\n"
    )
    argv = [sys.executable, "-c", program, str(agents.folder.root)]
    agent = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, cwd="/")
    agents.started.append(agent)
    agents.wait_log("trainer-0", "up")
    away = agents.folder.root.rename(agents.folder.root.with_name("away"))
    time.sleep(0.5)
    away.rename(agents.folder.root)  # a bad moment: nothing happens
    time.sleep(0.5)
    assert agent.poll() is None
    agents.folder.root.rename(away)
    assert agent.wait(10) == 75
    assert agent.stderr is not None
    assert "has been out of reach for 1 s: this node stops" in agent.stderr.read()
    away.rename(agents.folder.root)
    assert agents.ours() == []


def test_each_process_runs_on_the_cpus_that_the_plan_gives_it_and_so_do_its_children(agents: Agents) -> None:
    ours = sorted(os.sched_getaffinity(0))
    tell = "import os; print(sorted(os.sched_getaffinity(0)), os.environ.get('OMP_NUM_THREADS'), flush=True)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {tell!r}]); {SLEEP}"
    pinned = [msgspec.structs.replace(process(n, child), pin=Pin(cpus=1)) for n in range(min(2, len(ours)))]
    free = process(7, child)
    agents.plan(trainer=[*pinned, free])
    agents.start()
    for n in range(len(pinned)):
        agents.wait_log(f"trainer-{n}", f"[{ours[n]}] 1\n")
    agents.wait_log("trainer-7", f"{ours} {os.environ.get('OMP_NUM_THREADS')}\n")


def test_without_cpus_for_each_process_none_is_pinned_and_the_agent_says_so(agents: Agents) -> None:
    count = len(os.sched_getaffinity(0)) + 1
    tell = "import os; print(len(os.sched_getaffinity(0)))"
    code = f"{tell}; import time; time.sleep(1); raise SystemExit(3)"
    agents.plan(trainer=[msgspec.structs.replace(process(n, code), pin=Pin()) for n in range(count)])
    _, stderr = agents.start().communicate(timeout=20)
    assert "no process is pinned to CPUs: trainer-0 would get" in stderr
    assert agents.log("trainer-0").read_text().split()[-1] == str(count - 1)
