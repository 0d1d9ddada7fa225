"""Of two jobs of one submission, which a lost answer of sbatch can leave, only one works on the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.stand_in import StandIn
from verst.launcher.slurm.job import SlurmJob
from verst.launcher.slurm.jobs import GroupJobs, Launch, knows_job, submissions, submit_script
from verst.runtime.run.folder import RunFolder
from verst.slurm import SlurmError
from verst.slurm.environment import TaskEnvironment
from verst.slurm.submission import TOKEN


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.create()
    made.slurm.mkdir()
    (made.slurm / "trainer.sh").write_text("#!/bin/bash\n")
    return made


def token_of(folder: RunFolder) -> str:
    return submissions(folder)[-1].token


def test_the_recorded_job_is_known_and_its_duplicate_is_not(stand_in: StandIn, folder: RunFolder) -> None:
    job = submit_script(folder, "trainer", "verst submit")
    assert [(s.job, s.group, s.why) for s in submissions(folder)] == [("11", "trainer", "verst submit")]
    assert knows_job(folder, job, token_of(folder), 0)
    assert not knows_job(folder, "12", token_of(folder), 60)  # at once: it need not wait
    assert not knows_job(folder, "13", "", 0)  # submitted by hand


def test_a_withdrawn_submissions_job_steps_back(stand_in: StandIn, folder: RunFolder) -> None:
    stand_in.plan(*["not-reached"] * 9)
    with pytest.raises(SlurmError):
        submit_script(folder, "trainer", "verst submit")
    token = stand_in.calls("sbatch")[0].split("--comment=")[1].split()[0]
    assert submissions(folder) == []
    assert not knows_job(folder, "11", token, 0)


def test_when_the_submitter_dies_before_the_record_one_job_takes_its_place(
    stand_in: StandIn,
    folder: RunFolder,
) -> None:
    submit_script(folder, "trainer", "its node was taken away")
    note = submissions(folder)[0]
    (folder.slurm / "jobs.jsonl").unlink()  # as if it had died after sbatch's answer
    (folder.slurm / "submitting" / f"{note.token}.11").rename(folder.slurm / "submitting" / note.token)
    assert knows_job(folder, "11", note.token, 0)
    assert [(s.job, s.why) for s in submissions(folder)] == [("11", "its node was taken away")]
    assert not knows_job(folder, "12", note.token, 0)


def test_a_job_that_took_its_place_is_the_submitters_too(stand_in: StandIn, folder: RunFolder) -> None:
    """The answer comes when the job has waited long enough and works already; the second job is cancelled."""
    take = (
        f'mv "{folder.slurm}/submitting/$VERST_SUBMISSION" "{folder.slurm}/submitting/$VERST_SUBMISSION.7"\n'
    )
    stand_in.command("sbatch", take + 'echo "12_0|x" >> queue; echo 12\n')
    assert submit_script(folder, "trainer", "verst submit") == "7"
    assert stand_in.queue == []


@pytest.mark.parametrize("group", ["trainer", "rollout"])
def test_an_unknown_job_leaves_the_run_alone(
    stand_in: StandIn,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    group: str,
) -> None:
    submit_script(folder, "trainer", "verst submit")
    folder.start_generation("11.0")
    monkeypatch.setenv(TOKEN, token_of(folder))
    sizes = {"trainer": GroupJobs(tasks=1, nodes=1), "rollout": GroupJobs(tasks=1, nodes=1)}
    launch = Launch(restart="requeue", stop_lead_s=60, kill_wait_s=30, max_failures=1, groups=sizes)
    task = TaskEnvironment(job="12", array="12", index=0, restart=0, node=0, hosts=("n1",))
    assert SlurmJob(folder, launch, task, group).run() == 0
    assert folder.generation == 0
    assert not (folder.root / "agents").exists()
    assert "is not in" in folder.events.read_text()
