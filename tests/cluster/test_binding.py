"""Verst's own words with a real Slurm: states, errors, accounting, two users on the same nodes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import StartCluster
from tests.cluster.shared_python import share_python
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.small_run import SmallRun, make
from tests.launcher.recipes_for_tests import write_recipe
from tests.runs.verst_run import ROOT
from verst.launcher.recipe.faults import UserError
from verst.launcher.slurm.jobs import group_states
from verst.launcher.slurm.launch import submit_run
from verst.slurm import SlurmError, job_states
from verst.slurm.site import Site


@pytest.fixture(autouse=True)
def _slurm_commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verst's own calls of Slurm's commands reach the test's cluster."""
    if "cluster" in request.fixturenames:
        use(request.getfixturevalue("cluster"), monkeypatch)


def use(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)


def verst(cluster: SlurmCluster, *arguments: str, cwd: Path = ROOT) -> tuple[int, str]:
    """The command on the login node: its exit code and all that it printed."""
    argv = (sys.executable, "-P", "-m", "verst.launcher.cli", *arguments)
    done = cluster.run(*argv, check=False, cwd=cwd, timeout=120, env={"NO_COLOR": "1", "COLUMNS": "200"})
    return done.returncode, done.stdout + done.stderr


def test_job_states_are_slurms_and_an_unknown_job_is_gone(cluster: SlurmCluster) -> None:
    good = cluster.sbatch("true", "--array=0-1")
    bad = cluster.sbatch("exit 3")
    waits = cluster.sbatch("sleep 60", "--nodes=6", "--exclusive", "--dependency=afterok:" + bad)
    cluster.wait_for_state(bad, "FAILED")
    cluster.wait_for(lambda: all(s.ended for s in job_states([good])[good]), "the array to end")
    states = job_states([good, bad, waits, "999999"])
    assert [s.job for s in states[good]] == [f"{good}_0", f"{good}_1"]
    assert {s.state for s in states[good]} == {"COMPLETED"}
    assert states[bad][0].words() == "failed"
    assert states[waits][0].state in ("PENDING", "CANCELLED")  # kill_invalid_depend
    assert states["999999"][0].words() == "is no longer known to Slurm"


def test_what_a_site_allows_decides_how_a_run_comes_back(cluster: SlurmCluster) -> None:
    site = Site.look()
    ways = {p.name: site.restart(p) for p in site.partitions.values()}
    assert ways == {"low": "requeue", "cancelled": "resubmit", "high": "requeue"}
    assert site.signals_preemption
    assert site.kill_wait_s == cluster.options.kill_wait


def test_an_impossible_request_is_told_in_slurms_words_and_leaves_nothing(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    made = make(tmp_path, ["slurm.rollout.mem=900G"], 10, 0.1, 1, 1)
    with pytest.raises(UserError, match=r"sbatch .*not available.*cancelled again"):
        submit_run(*made, "test")
    cluster.wait_for(
        lambda: not cluster.queue("PENDING,RUNNING,COMPLETING"), "the trainer's job to be taken back"
    )


def test_a_wrong_partition_is_told_with_those_there_are(cluster: SlurmCluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no partition 'gpu', only: .*low.*cancelled.*high"):
        make(tmp_path, ["slurm.sbatch.partition=gpu"], 10, 0.1, 1, 1)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_submitted(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    write_recipe(tmp_path)
    code, said = verst(cluster, "submit", "recipe.yaml", "runs_dir=/proc/runs", cwd=tmp_path)
    assert code == 2
    assert "cannot make the run folder /proc/runs/test" in said
    assert cluster.queue("PENDING,RUNNING") == []


def test_without_slurm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="there is no scontrol on this machine"):
        Site.look()


def test_status_and_cancel_read_the_folder_and_ask_slurm(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = SmallRun(cluster, tmp_path)
    run.wait_step(0)
    run.recipe.write(run.folder.recipe)
    folder = str(run.folder.root)
    code, said = verst(cluster, "status", folder)
    assert code == 0, said
    assert f"trainer job {run.trainer}_0: runs on {cluster.nodes[0]}" in said.replace("[1-2]", "1")
    code, said = verst(cluster, "resume", folder)
    assert code == 2
    assert "still has jobs that have not ended" in said
    code, said = verst(cluster, "cancel", folder)
    assert code == 0, said
    assert run.lines("saved") == [run.lines("steps")[-1]]
    run.wait_gone()
    code, said = verst(cluster, "status", folder)
    assert f"trainer job {run.trainer}_0: has ended well" in said or "was cancelled" in said


def test_doctor_looks_at_the_cluster_and_at_a_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    code, said = verst(cluster, "doctor", "--on-node", cwd=tmp_path)
    assert code == 0, said
    for words in (
        "Slurm 22.05",
        "a preempted job first gets a signal (USR2)",
        "partition low (default): 6 nodes",
        "can call Slurm",
        "GPUs none requested",
    ):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.long
def test_two_users_on_the_same_nodes_at_once(cluster: SlurmCluster, tmp_path: Path) -> None:
    mine = SmallRun(cluster, tmp_path, steps=80)
    with cluster.add_user("alice") as alice:
        home = cluster.home / "alice"
        python, environment = share_python(cluster.home / "python")
        command = (python, "-m", "tests.cluster.small_run", str(home / "r"))
        cluster.run(*command, user=alice, cwd=ROOT, env=environment)
        theirs = home / "r/run"
        cluster.wait_for(lambda: (theirs / "steps").exists() and mine.lines("steps"), "both to make steps")
        assert (theirs.stat().st_mode & 0o777, mine.folder.root.stat().st_mode & 0o777) == (0o700, 0o700)
        seen = cluster.run("cat", str(theirs / "keys/curve.json"), user="nobody", check=False, cwd=Path("/"))
        assert seen.returncode != 0
        ended = theirs / "ended"
        cluster.wait_for(ended.exists, "alice's run to end", 60)
        assert '"code":0' in ended.read_text()
    assert mine.wait_end().code == 0
    assert len(mine.lines("lives")) == 1


@pytest.mark.long
def test_with_accounting_the_end_of_every_job_is_known(
    start_cluster: StartCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = start_cluster(accounting=True, min_job_age=2)
    use(cluster, monkeypatch)
    run = SmallRun(cluster, tmp_path, steps=10, nodes=1, engines=1)
    assert run.wait_end().code == 0

    def forgotten() -> bool:
        return not cluster.queue("all")

    cluster.wait_for(forgotten, "squeue to forget the jobs", 90)
    words = {group: [s.words() for s in states] for group, states in group_states(run.folder).items()}
    assert words == {"trainer": ["has ended well"], "rollout": ["has ended well"]}
