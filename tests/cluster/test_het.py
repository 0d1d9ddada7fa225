"""The all-or-nothing layout: one heterogeneous job, with real Slurm, real agents and small processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.small_run import SmallRun
from tests.cluster.test_lives import no_step_is_lost
from tests.runs.verst_run import ROOT
from verst.launcher.plan.slurm_options import cluster_of
from verst.launcher.slurm.jobs import group_states, submissions
from verst.launcher.slurm.launch import submit_run, write_launch
from verst.runtime.run.ending import reopen
from verst.slurm.site import Site


@pytest.fixture(autouse=True)
def _slurm_commands(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verst's own calls of Slurm's commands reach the test's cluster."""
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)


def het(cluster: SlurmCluster, folder: Path, *overrides: str, seconds: float = 0.1) -> SmallRun:
    """A run of two trainer nodes and three engines in one job."""
    return SmallRun(cluster, folder, "slurm.layout=het", *overrides, seconds=seconds, engines=3)


def nodes_of(run: SmallRun, kind: str, generation: int) -> dict[str, str]:
    """Where each rank or worker ran in a life, by its index in the plan."""
    lines = [line.split() for line in run.lines(kind)]
    return {words[1]: words[3] for words in lines if words[0] == str(generation)}


def all_workers(run: SmallRun, generation: int) -> dict[str, str]:
    """The engines' nodes, once all three serve this life."""
    workers = nodes_of(run, "workers", generation)
    return workers if len(workers) == 3 else {}


def verst(cluster: SlurmCluster, *arguments: str) -> tuple[int, str]:
    argv = (sys.executable, "-P", "-m", "verst.launcher.cli", *arguments)
    done = cluster.run(*argv, check=False, cwd=ROOT, env={"NO_COLOR": "1", "COLUMNS": "200"})
    return done.returncode, done.stdout + done.stderr


def test_it_starts_as_one_job_and_ends_with_it(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = het(cluster, tmp_path)
    run.recipe.write(run.folder.recipe)
    run.wait_step(0)
    (job,) = run.jobs["het"]
    lines = {(line.id, line.name) for line in cluster.queue("RUNNING")}
    assert lines == {(f"{job}+0", "test-trainer"), (f"{job}+1", "test-rollout")}
    _, told = verst(cluster, "status", str(run.folder.root))
    for line in (f"trainer job {job}+0: runs on ", f"rollout job {job}+1: runs on "):
        assert line in told
    # Each member of the plan once, each on a node of its own, in the order of its component's nodes.
    workers = cluster.wait_for(lambda: all_workers(run, 0), "all engines to serve")
    ranks = nodes_of(run, "ranks", 0)
    assert sorted(ranks) == ["0", "1"]
    assert len({*ranks.values(), *workers.values()}) == 5
    assert [workers[index] for index in "012"] == sorted(workers.values())

    (run.folder.root / "fail").write_text("0")  # the controller's exit code
    assert run.wait_end().code == 0
    run.wait_gone()
    assert {state.state for of in group_states(run.folder).values() for state in of} == {"COMPLETED"}


@pytest.mark.long
def test_one_node_taken_it_comes_back_whole_and_cancelled_it_does_not(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = het(cluster, tmp_path)
    run.wait_step(0)
    workers = cluster.wait_for(lambda: all_workers(run, 0), "all engines to serve")
    cluster.sbatch("sleep 1", "--partition=high", f"--nodelist={workers['1']}", "--exclusive")
    run.wait_step(1, timeout=90)
    assert len(run.lines("saved")) == 1
    no_step_is_lost(run)
    assert "SIGUSR2" in run.events("stop_asked")[0]["message"]
    assert [e["message"].split(";")[-1] for e in run.events("comes_back")] == [" it goes back into the queue"]
    cluster.wait_for(lambda: all_workers(run, 1), "all engines to be back")
    assert len({line.split("pid ")[1] for line in run.lines("workers")}) == 6  # none outlasts the job

    run.recipe.write(run.folder.recipe)
    code, told = verst(cluster, "cancel", str(run.folder.root))
    assert code == 0, told
    run.wait_gone()
    assert len(run.lines("saved")) == 2
    assert not run.wait_end().resumes
    assert len(submissions(run.folder)) == 1
    assert [s.ended for of in group_states(run.folder).values() for s in of] == [True, True]


@pytest.mark.long
def test_where_preemption_cancels_the_whole_job_is_submitted_again(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = het(cluster, tmp_path, "slurm.sbatch.partition=cancelled")
    assert run.launch.restart == "resubmit"
    run.wait_step(0)
    cluster.sbatch("sleep 2", "--partition=high", "--nodes=6", "--exclusive")
    run.wait_step(1, timeout=90)
    no_step_is_lost(run)
    assert [s.group for s in submissions(run.folder)] == ["het", "het"]
    cluster.wait_for(lambda: all_workers(run, 1), "all engines to be back")


@pytest.mark.long
def test_a_chain_goes_on_with_its_next_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = het(cluster, tmp_path, "slurm.restart=chain", "slurm.chain=2")
    run.wait_step(0)
    cluster.run("scancel", "--signal=USR2", run.jobs["het"][0])
    run.wait_step(1)
    no_step_is_lost(run)


@pytest.mark.long
def test_an_engine_that_keeps_failing_ends_the_life_and_the_next_one_is_whole(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = het(cluster, tmp_path, "slurm.max_failures=1")
    run.wait_step(0)
    (run.folder.root / "fail-1").write_text("")
    end = run.wait_end(timeout=90)
    assert (end.code, end.generation) == (3, 1)
    assert "rollout-1 on node rollout/1 failed: exit code 3 after 1 restarts" in end.reason
    assert len(all_workers(run, 1)) == 3
    run.wait_gone()


@pytest.mark.long
def test_requeued_cancelled_and_resumed_in_the_other_layout_it_goes_on(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    run = het(cluster, tmp_path)
    (job,) = run.jobs["het"]
    run.wait_step(0)
    cluster.run("scontrol", "requeue", job)
    run.wait_step(1, timeout=90)
    no_step_is_lost(run)
    cluster.run("scancel", job)
    assert "was cancelled (scancel)" in run.wait_end().reason
    assert len(run.lines("saved")) == 2
    run.wait_gone()
    # As `verst resume` does with slurm.layout=arrays.
    reopen(run.folder, run.wait_end())
    run.recipe.slurm.layout = "arrays"
    launch = write_launch(run.recipe, run.folder, cluster_of(run.recipe), Site.look())
    submit_run(run.recipe, run.folder, launch, "resumed")
    run.wait_step(2)
    no_step_is_lost(run)
    assert [s.group for s in submissions(run.folder)] == ["het", "trainer", "rollout"]


@pytest.mark.long
def test_an_engines_node_that_dies_brings_the_whole_run_back(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = het(cluster, tmp_path, seconds=0.5)
    run.wait_step(0)
    workers = cluster.wait_for(lambda: all_workers(run, 0), "all engines to serve")
    cluster.kill_node(workers["1"])
    run.wait_step(1, timeout=150)
    cluster.wait_for(lambda: all_workers(run, 1), "all engines to be back")
    assert workers["1"] not in all_workers(run, 1).values()
