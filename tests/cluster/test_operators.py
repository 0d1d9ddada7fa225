"""What the submitting shell, a busy slurmctld and a broken node do to a run: real Slurm, small processes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import StartCluster
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.small_run import SmallRun
from tests.cluster.test_lives import no_step_is_lost, occupy
from verst.launcher.slurm.jobs import group_states, submissions

SHELL = {
    "SBATCH_PARTITION": "cancelled",
    "SBATCH_TIMELIMIT": "77",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_SIGNAL": "USR1@30",
    "SBATCH_EXPORT": "NONE",
    "SLURM_TIMELIMIT": "1",
    "SLURM_MEM_PER_CPU": "500",
    "SQUEUE_PARTITION": "high",
    "SQUEUE_STATES": "PENDING",
}


def use(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verst's own calls of Slurm's commands reach this cluster."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cluster(session_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    use(session_cluster, monkeypatch)
    yield session_cluster
    session_cluster.reset()


def test_the_submitting_shell_changes_nothing(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    run = SmallRun(cluster, tmp_path, "slurm.setup=[export FROM_SETUP=yes]", "slurm.sbatch.mem=1G", nodes=1)
    run.wait_step(0)
    job = cluster.job(f"{run.trainer}_0")
    assert (job["Partition"], job["Requeue"]) == ("low", "1")
    # The partition's, which has none: Slurm's backfill scheduler shows that as a year, its main scheduler as UNLIMITED.
    assert job["TimeLimit"] in ("UNLIMITED", "365-00:00:00")
    cluster.wait_for(lambda: run.lines("setup"), "a rank to start")
    assert run.lines("setup") == ["yes None"]
    states = group_states(run.folder)
    assert [state.state for state in states["trainer"]] == ["RUNNING"]
    cluster.run("scontrol", "requeue", run.trainer)
    run.wait_step(1, timeout=90)
    assert not run.events("engines_submitted")  # they run, and the trainer's next life sees them
    assert "SIGTERM" in run.events("stop_asked")[0]["message"]


# Takes the place of sbatch: the first job is submitted, its answer is lost.
LATE = """\
#!/bin/bash
if [ ! -e {mark} ]; then
  touch {mark}; {real} "$@" > /dev/null
  echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1
fi
exec {real} "$@"
"""


def test_a_submission_whose_answer_was_lost_leaves_one_job(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("sbatch")
    late = tmp_path / "bin/sbatch"
    late.parent.mkdir()
    late.write_text(LATE.format(mark=tmp_path / "mark", real=real))
    late.chmod(0o700)
    monkeypatch.setenv("PATH", f"{late.parent}:{os.environ['PATH']}")
    run = SmallRun(cluster, tmp_path, nodes=1, engines=1)
    run.wait_step(0)
    names = [line.name for line in cluster.queue("PENDING,RUNNING")]
    assert sorted(names) == ["test-rollout", "test-trainer"]
    assert len(submissions(run.folder)) == 2

    # A second job of the same submission, as if slurmctld had obeyed twice, leaves the run alone.
    token = next(s.token for s in submissions(run.folder) if s.group == "trainer")
    script = str(run.folder.slurm / "trainer.sh")
    argv = ("sbatch", "--parsable", script)
    second = cluster.run(*argv, env={"VERST_SUBMISSION": token}).stdout.strip()
    cluster.wait_for_state(second, "COMPLETED", timeout=60)
    assert [event["message"].split(" is ")[0] for event in run.events("stepped_back")] == [
        f"trainer job {second}_0"
    ]
    assert run.folder.generation == 0
    assert len(run.lines("lives")) == 1


@pytest.mark.long
def test_a_lost_node_is_not_taken_for_a_cancel(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.sbatch.no-requeue=true", engines=1)
    assert run.launch.restart == "resubmit"
    run.wait_step(0)
    leader = run.lines("lives")[0].split(" at ")[1]
    nodes = cluster.wait_for(
        lambda: {line.split(" at ")[1].split()[0] for line in run.lines("ranks")} - {leader}, "the other rank"
    )
    other = nodes.pop()
    cluster.run("scontrol", "update", f"NodeName={other}", "State=DOWN", "Reason=test")
    run.wait_step(1, timeout=90)
    cluster.run(
        "scontrol", "update", f"NodeName={other}", "State=RESUME", check=False
    )  # it may be back already
    assert run.trainer != run.jobs["trainer"][0]


def test_a_node_that_cannot_start_the_agent_is_left_out(cluster: SlurmCluster, tmp_path: Path) -> None:
    broken = f"sh -c '[ $(hostname) != {cluster.nodes[0]} ] || exit 127; exec \"$@\"' sh"
    run = SmallRun(
        cluster,
        tmp_path,
        f"slurm.container={json.dumps(broken)}",
        "slurm.sbatch.exclusive=true",
        nodes=1,
        engines=1,
    )
    run.wait_step(0)
    told = run.events("agent_not_started")
    assert f"could not be started on {cluster.nodes[0]} (exit code 127)" in told[0]["message"]
    assert cluster.nodes[0] not in run.lines("lives")[0]
    assert [s.why for s in submissions(run.folder)].count("its agent could not be started") == len(told)


@pytest.mark.long
@pytest.mark.parametrize("late_s", [0, 10])
def test_a_trainers_other_node_that_cannot_start_the_agent(
    late_s: int, cluster: SlurmCluster, tmp_path: Path
) -> None:
    """It is left out if it fails before the first node's agent has begun; else that tells, and lives are bounded."""
    broken = f"[ $(hostname) != {cluster.nodes[1]} ] || {{ sleep {late_s}; exit 127; }}"
    run = SmallRun(
        cluster,
        tmp_path,
        f"slurm.container={json.dumps(f'sh -c \'{broken}; exec "$@"\' sh')}",
        "slurm.max_fruitless_lives=2",
        seconds=60,  # no checkpoint comes of it
        engines=1,
    )
    if late_s:
        end = run.wait_end(timeout=150)
        assert (
            "2 lives in a row (slurm.max_fruitless_lives) have ended before the first checkpoint"
            in end.reason
        )
        told = run.events("agent_not_started")[0]["message"]
        assert f"no agent ever started on {cluster.nodes[1]} in this life" in told
        run.wait_gone()
    else:
        cluster.wait_for(lambda: len(run.lines("ranks")) == 2, f"two ranks; logs: {run.logs()}", 90)
        told = run.events("agent_not_started")[0]["message"]
        assert f"could not be started on {cluster.nodes[1]} (" in told
        assert not any(cluster.nodes[1] in line for line in run.lines("ranks"))


@pytest.mark.long
def test_a_suspended_engine_goes_on_as_it_was(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Its agent wakes up too, and takes the time that both slept for no hang and no lost controller."""
    run = SmallRun(cluster, tmp_path, "slurm.sbatch.exclusive=true", nodes=1, engines=1)
    run.wait_step(0)
    before = cluster.wait_for(lambda: run.lines("workers"), "the engine to serve")
    job = run.jobs["rollout"][0]
    cluster.run("scontrol", "suspend", job)
    made = len(run.lines("steps"))
    time.sleep(45)
    cluster.run("scontrol", "resume", job)
    time.sleep(15)
    assert run.lines("workers") == before, "the same process"
    assert len(run.lines("steps")) > made
    assert [e for e in run.events("process_failed") + run.events("process_restarted")] == []
    assert run.folder.generation == 0


@pytest.mark.long
def test_a_failed_life_waits_for_a_slurmctld_that_is_away(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.max_failures=3", nodes=1, engines=1)
    run.wait_step(0)
    with cluster.without_controller():
        (run.folder.root / "fail").write_text("3")
        cluster.wait_for(lambda: run.events("slurm_away"), "the job to say that it waits", 90)
        (run.folder.root / "fail").unlink()
        # Longer than what three tries took.
        cluster.wait_for(lambda: "next try in 60 s" in run.logs(), "the pauses to be long", 240)
    run.wait_step(1, timeout=150)


@pytest.mark.long  # a cluster of its own, with a database
def test_where_a_qos_allows_no_further_job_a_cancelled_run_is_requeued(
    start_cluster: StartCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two jobs and the one that drives them away are all that this user may have."""
    cluster = start_cluster(accounting=True, limits=True)
    use(cluster, monkeypatch)
    for wanted in (
        "add account tests",
        "add user root account=tests",
        "modify qos normal set MaxSubmitJobsPerUser=3",
    ):
        cluster.run("sacctmgr", "--immediate", *wanted.split())
    run = SmallRun(cluster, tmp_path, "slurm.sbatch.partition=cancelled", nodes=1, engines=1)
    assert run.launch.restart == "resubmit"
    run.wait_step(0)
    occupy(cluster, "--nodes=6", "--exclusive")
    run.wait_step(1, timeout=120)
    no_step_is_lost(run)
    refused = [event["message"] for event in run.events("slurm_failed")]
    assert any("trainer job" in text and "QOSMaxSubmitJobPerUserLimit" in text for text in refused), refused
    assert run.trainer == run.jobs["trainer"][0], "it is the same job"
    cluster.wait_for(
        lambda: any(line.startswith("1 ") for line in run.lines("workers")), "the engine to be back"
    )
