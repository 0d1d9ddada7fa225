"""When the trainer's job sees to the run's other jobs: not while a person is still submitting them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from verst.launcher.slurm_job import SlurmJob
from verst.launcher.slurm_jobs import GroupJobs, Launch, Submission
from verst.runtime.run_folder import RunFolder, append_line
from verst.slurm import TaskEnvironment


@pytest.mark.parametrize(
    ("why", "restart", "fresh"),
    [
        (None, 0, True),  # sbatch has answered, and the answer is not written down yet
        ("verst submit", 0, True),
        ("verst resume", 0, True),
        ("verst submit", 1, False),
        ("its node is taken away", 0, False),
    ],
)
def test_a_job_just_submitted_by_a_person_is_fresh(
    tmp_path: Path, why: str | None, restart: int, fresh: bool
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.slurm.mkdir()
    if why is not None:
        note = Submission(group="trainer", job="10", why=why, time=0.0)
        append_line(folder.slurm / "jobs.jsonl", msgspec.to_builtins(note))
    groups = {"trainer": GroupJobs(tasks=1, nodes=1), "rollout": GroupJobs(tasks=1, nodes=1)}
    launch = Launch(restart="requeue", stop_lead_s=60, kill_wait_s=30, max_failures=1, groups=groups)
    task = TaskEnvironment(job="11", array="10", index=0, restart=restart, node=0, hosts=("n1",))
    assert SlurmJob(folder, launch, task, "trainer")._is_fresh() is fresh
