"""When the trainer's job sees to the run's other jobs, and when it gives the run up."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest

from tests.launcher.recipes_for_tests import write_recipe
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.prepare import prepare_run
from verst.launcher.slurm.job import SlurmJob
from verst.launcher.slurm.jobs import GroupJobs, Launch, Submission
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder, append_line
from verst.slurm.environment import TaskEnvironment


@pytest.mark.parametrize(
    ("why", "restart", "fresh"),
    [
        (None, 0, True),  # sbatch has answered, and the answer is not written down yet
        ("verst submit", 0, True),
        ("verst resume", 0, True),
        ("verst submit", 1, False),
        ("its node was taken away", 0, False),
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
    assert job(folder, restart)._is_fresh() is fresh


def job(folder: RunFolder, restart: int, fruitless: int | None = 3) -> SlurmJob:
    groups = {"trainer": GroupJobs(tasks=1, nodes=1), "rollout": GroupJobs(tasks=1, nodes=1)}
    launch = Launch(
        restart="requeue",
        stop_lead_s=60,
        kill_wait_s=30,
        max_failures=1,
        max_fruitless_lives=fruitless,
        groups=groups,
    )
    task = TaskEnvironment(job="11", array="10", index=0, restart=restart, node=0, hosts=("n1",))
    return SlurmJob(folder, launch, task, "trainer")


def checkpoint(folder: RunFolder, step: int) -> None:
    path = folder.checkpoints / f"step-{step:06d}"
    path.mkdir()
    (path / "checkpoint.json").write_text("{}")


def test_lives_without_a_new_checkpoint_are_counted_however_they_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verst.launcher.slurm.job._FENCE_S", 0.0)
    folder = RunFolder(tmp_path / "run")
    folder.create()
    counted = []
    for restart in range(5):
        job(folder, restart)._begin_life()  # the one before ended without a word
        assert folder.life is not None
        counted.append(folder.life.fruitless)
        if restart == 2:
            checkpoint(folder, 7)
    assert counted == [0, 1, 2, 0, 1]
    assert job(folder, 5)._fruitless() is None
    job(folder, 5)._begin_life()
    assert (
        "3 lives in a row (slurm.max_fruitless_lives) have ended before a checkpoint after step-000007"
        in str(job(folder, 6)._fruitless())
    )
    assert job(folder, 6, fruitless=None)._fruitless() is None  # an app of actors
    job(folder, 0)._begin_life()  # a person has submitted it again
    assert folder.life is not None
    assert folder.life.fruitless == 0


def test_a_job_that_comes_back_too_often_without_a_checkpoint_ends_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.slurm.mkdir()
    note = Submission(group="trainer", job="10", why="verst submit", time=0.0)
    append_line(folder.slurm / "jobs.jsonl", msgspec.to_builtins(note))
    folder.start_generation("11.4", fruitless=2)
    assert job(folder, 5).run() == 1
    end = read_end(folder, 0)
    assert end is not None
    assert (end.code, end.resumes, folder.generation) == (1, False, 0)
    assert "3 lives in a row (slurm.max_fruitless_lives) have ended before the first checkpoint" in end.reason
    assert "it ended without giving a reason; `verst resume` tries again" in end.reason
    assert job(folder, 6).run() == 0  # the run is over: nothing to do


def test_nodes_whose_agents_never_started_are_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    made = job(folder, 1)
    made.launch.groups["trainer"] = GroupJobs(tasks=1, nodes=3)
    task = dataclasses.replace(made.task, hosts=("n1", "n2", "n3"))
    made = SlurmJob(folder, made.launch, task, "trainer")
    folder.claim("trainer", 0, task.life)
    folder.claim("trainer", 1, "an earlier life")
    assert made._without_agent() == ["n2", "n3"]
    for node in (1, 2):
        folder.claim("trainer", node, task.life)
    assert made._without_agent() == []


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with a model folder, whose trainer's job has not started yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verst.launcher.slurm.job._FENCE_S", 0.0)
    folder, _ = prepare_run(load_recipe(write_recipe(tmp_path)), Machine(cores=2))
    folder.slurm.mkdir()
    note = Submission(group="trainer", job="10", why="verst submit", time=0.0)
    append_line(folder.slurm / "jobs.jsonl", msgspec.to_builtins(note))
    return folder


def change_weights() -> None:
    with Path("model/model.safetensors").open("r+b") as file:
        file.seek(-1000, 2)
        file.write(bytes([1]) * 1000)


@pytest.mark.parametrize("saved", [True, False])
def test_no_life_begins_by_itself_on_a_model_that_was_replaced(submitted: RunFolder, saved: bool) -> None:
    """Slurm starts the job again: the model would be another reference policy, or have another config.json."""
    assert job(submitted, 0)._changed_model() is None
    submitted.start_generation("11.0")
    if saved:
        checkpoint(submitted, 2)
    assert job(submitted, 1)._changed_model() is None
    change_weights()
    assert job(submitted, 1).run() == 1
    end = read_end(submitted, 0)
    assert end is not None
    assert (end.resumes, submitted.generation) == (False, 0)
    made = "the checkpoint" if saved else "what was generated"
    path = Path("model").absolute()
    assert f"model.path: {path}: {made} is of that model as it was when the run began" in end.reason
    assert "other weights would give it another reference policy" in end.reason
    assert end.reason.endswith("put the model back, or set model.path to a copy; then `verst resume` goes on")


def test_the_first_life_begins_with_the_model_as_it_is_then(submitted: RunFolder) -> None:
    change_weights()
    assert job(submitted, 0)._changed_model() is None
    submitted.start_generation("11.0")
    assert job(submitted, 1)._changed_model() is None


def test_a_model_that_cannot_be_read_is_left_to_the_trainer(submitted: RunFolder) -> None:
    """A file system may be away for a moment, and an end for good would need a person."""
    submitted.start_generation("11.0")
    Path("model").rename("away")
    assert job(submitted, 1)._changed_model() is None
    (event,) = [line for line in submitted.events.read_text().splitlines() if "model_not_compared" in line]
    assert "no safetensors weights to read" in event
