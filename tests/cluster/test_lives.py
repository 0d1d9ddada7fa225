"""What interrupts a run on Slurm, and that it comes back: real Slurm, real agents, small processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.cluster.conftest import StartCluster
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.small_run import SmallRun


@pytest.fixture(autouse=True)
def _slurm_commands(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verst's own calls of Slurm's commands reach the test's cluster."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)


def no_step_is_lost(run: SmallRun) -> None:
    """Each life goes on from the step that the one before saved, and no step is made in two lives."""
    made = [int(line.split()[1]) for line in run.lines("steps")]
    assert made == list(range(1, made[-1] + 1)), run.logs()


def test_a_run_starts_as_two_arrays_and_ends_with_all_its_jobs(cluster: SlurmCluster, tmp_path: Path) -> None:
    around = ["slurm.setup=[export FROM_SETUP=yes]", "slurm.container=env FROM_CONTAINER=too"]
    run = SmallRun(cluster, tmp_path, *around, steps=20)
    names = {(line.id.partition("_")[0], line.name) for line in cluster.queue("PENDING,RUNNING")}
    assert names == {(run.jobs["trainer"][0], "test-trainer"), (run.jobs["rollout"][0], "test-rollout")}
    assert run.wait_end().code == 0
    run.wait_gone()
    assert [line.split()[:3] for line in run.lines("lives")] == [["0", "from", "0"]]
    ranks = [line.split() for line in run.lines("ranks")]
    assert {rank[1] for rank in ranks} == {"0", "1"}
    assert len({rank[3] for rank in ranks}) == 2  # two nodes
    assert set(run.lines("setup")) == {"yes too"}
    assert len({rank[4] for rank in ranks}) == 2  # each at an address of its own
    assert not any(address.startswith("127.") for *_, address in ranks)
    assert {state for state in cluster.node_states().values()} == {"idle"}


def test_requeued_by_hand_it_saves_and_comes_back(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path)
    run.wait_step(0)
    cluster.run("scontrol", "requeue", run.trainer)
    run.wait_step(1, timeout=90)
    assert len(run.lines("saved")) == 1
    no_step_is_lost(run)
    # The engines stayed, and went on into the new life without being started again.
    pids = {line.split("pid ")[1] for line in run.lines("workers")}
    assert len(pids) == 2
    cluster.wait_for(lambda: len(run.lines("workers")) == 4, f"both engines to go on: {run.lines('workers')}")


def occupy(cluster: SlurmCluster, *options: str) -> str:
    """A job of higher priority for a moment; it starts once it has driven away what is in its way."""
    job = cluster.sbatch("sleep 2", "--partition=high", *options)
    cluster.wait_for_state(job, "RUNNING", "COMPLETED", timeout=90)
    return job


def test_preempted_it_saves_within_the_grace_time_and_comes_back(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(cluster, tmp_path)
    run.wait_step(0)
    occupy(cluster, "--nodes=6", "--exclusive")
    run.wait_step(1, timeout=90)
    assert len(run.lines("saved")) == 1
    no_step_is_lost(run)
    assert "SIGUSR2" in run.events("stop_asked")[0]["message"]
    cluster.wait_for(
        lambda: any(line.startswith("1 ") for line in run.lines("workers")), "an engine to be back"
    )


def test_an_engines_node_is_preempted_and_the_run_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.sbatch.exclusive=true", nodes=1, engines=1)
    run.wait_step(0)
    before = cluster.wait_for(lambda: run.lines("workers"), "the engine to serve")
    node = before[0].split(" at ")[1].split()[0]
    occupy(cluster, f"--nodelist={node}", "--exclusive")
    cluster.wait_for(lambda: len(run.lines("workers")) == 2, "the engine to come back", 60)
    assert run.lines("lives")[-1].startswith("0 ")
    assert [e["message"].split(";")[-1] for e in run.events("comes_back")] == [" it goes back into the queue"]


@pytest.mark.long
def test_where_preemption_cancels_the_run_submits_itself_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.sbatch.partition=cancelled")
    assert run.launch.restart == "resubmit"
    run.wait_step(0)
    occupy(cluster, "--nodes=6", "--exclusive")
    run.wait_step(1, timeout=90)
    no_step_is_lost(run)
    assert run.trainer != run.jobs["trainer"][0]


@pytest.mark.long
def test_a_failure_is_tried_again_as_often_as_the_recipe_says(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.max_failures=1", nodes=1, engines=1)
    run.wait_step(0)
    (run.folder.root / "fail").write_text("3")
    end = run.wait_end()
    assert (end.code, end.generation) == (3, 1)
    assert "controller-0 on node trainer/0 failed: exit code 3" in end.reason
    run.wait_gone()


@pytest.mark.long
def test_what_would_fail_again_is_not_tried_again(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, nodes=1, engines=1)
    run.wait_step(0)
    (run.folder.root / "fail").write_text("65")
    assert (run.wait_end().generation, run.wait_end().code) == (0, 65)
    run.wait_gone()


@pytest.mark.long
def test_lives_that_bring_it_no_further_are_bounded(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Interrupted again and again before its first checkpoint; a checkpoint in between begins the count anew."""
    run = SmallRun(cluster, tmp_path, "slurm.max_fruitless_lives=2", nodes=1, engines=1)
    for life in range(3):
        run.wait_step(life, timeout=90)
        if life != 1:
            (run.folder.root / "no-save").write_text("")
        else:
            (run.folder.root / "no-save").unlink()
        cluster.run("scontrol", "requeue", run.trainer)
    run.wait_step(3, timeout=90)
    cluster.run("scontrol", "requeue", run.trainer)
    end = run.wait_end()
    assert end.generation == 3
    assert end.reason.startswith(
        "2 lives in a row (slurm.max_fruitless_lives) have ended before a checkpoint after "
    )
    assert [event["message"] for event in run.events("gave_up")] == [end.reason]
    run.wait_gone()


def test_cancelled_with_scancel_it_saves_and_stays_away(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path)
    run.wait_step(0)
    cluster.run("scancel", run.trainer)
    assert "was cancelled (scancel)" in run.wait_end().reason
    assert len(run.lines("saved")) == 1
    run.wait_gone()


@pytest.mark.long
def test_a_chain_goes_on_with_its_next_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.restart=chain", "slurm.chain=2", nodes=1, engines=1)
    run.wait_step(0)
    cluster.run("scancel", "--signal=USR2", run.jobs["trainer"][0])
    run.wait_step(1)
    no_step_is_lost(run)


@pytest.mark.long
def test_preempted_with_sigterm_alone_it_saves_and_comes_back(
    start_cluster: StartCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = start_cluster(signal_preemption=False)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    run = SmallRun(cluster, tmp_path, nodes=1, engines=1)
    run.wait_step(0)
    occupy(cluster, "--nodes=6", "--exclusive")
    run.wait_step(1, timeout=90)
    assert "SIGTERM" in run.events("stop_asked")[0]["message"]
    assert len(run.lines("saved")) == 1
    no_step_is_lost(run)


@pytest.mark.long
def test_engines_may_start_long_before_the_trainer(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.trainer.begin=now+6", nodes=1, engines=1)
    cluster.wait_for(lambda: len(cluster.queue("RUNNING")) == 1, "the engine to start alone")
    run.wait_step(0)
    cluster.wait_for(lambda: run.lines("workers"), "the engine to serve")
    assert len({line.split("pid ")[1] for line in run.lines("workers")}) == 1


@pytest.mark.long
def test_a_time_limit_comes_with_a_warning_and_the_run_goes_on_after_it(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.trainer.time=1", "slurm.stop_lead_s=30", seconds=0.5)
    run.wait_step(1, timeout=150)
    no_step_is_lost(run)
    assert "SIGUSR2" in run.events("stop_asked")[0]["message"]


@pytest.mark.long
def test_a_node_that_dies_brings_the_run_back_from_its_last_checkpoint(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(cluster, tmp_path, seconds=0.5)
    run.wait_step(0)
    cluster.kill_node(run.lines("lives")[0].split(" at ")[1])
    run.wait_step(1, timeout=120)
    assert run.lines("lives")[1].startswith("1 from 0 ")  # it was not asked: the last checkpoint counts


@pytest.mark.long
@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_trainer_node_cut_off_is_replaced_and_its_processes_end(
    cluster: SlurmCluster, tmp_path: Path, which: str
) -> None:
    run = SmallRun(cluster, tmp_path, seconds=0.5, engines=1)
    run.wait_step(0)
    leader = run.lines("lives")[0].split(" at ")[1]
    nodes = {line.split(" at ")[1].split()[0] for line in run.lines("ranks")}
    node = leader if which == "leader" else (nodes - {leader}).pop()
    ghosts = [pid for pid in cluster.pids_on(node) if "small_processes" in command(pid)]
    assert ghosts
    cluster.partition_node(node)
    run.wait_step(1, timeout=120)
    cluster.wait_for(lambda: not any(command(pid) for pid in ghosts), "the cut-off processes to end")
    if which == "leader":
        made = [line for line in run.lines("steps") if line.startswith("0 ")]
        time.sleep(2)
        assert [line for line in run.lines("steps") if line.startswith("0 ")] == made
    cluster.heal_node(node)


def command(pid: int) -> str:
    """A process's command line, "" once it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


@pytest.mark.long
def test_an_engines_node_cut_off_is_replaced_and_its_processes_end(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = SmallRun(cluster, tmp_path, "slurm.sbatch.exclusive=true", nodes=1, engines=1)
    run.wait_step(0)
    first = cluster.wait_for(lambda: run.lines("workers"), "the engine to serve")[0]
    node, pid = first.split(" at ")[1].split()[0], int(first.split("pid ")[1])
    cluster.partition_node(node)
    cluster.wait_for(lambda: len(run.lines("workers")) == 2, "another engine in its place", 120)
    cluster.wait_for(lambda: not command(pid), "the cut-off worker to end")
    assert len(run.lines("lives")) == 1
    cluster.heal_node(node)
