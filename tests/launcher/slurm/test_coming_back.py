"""An interrupted job comes back in one way or the other, and a run that cannot ends for good."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.stand_in import StandIn
from verst.launcher.slurm.coming_back import Return
from verst.launcher.slurm.jobs import GroupJobs, Launch, submissions
from verst.runtime.run.ending import RunEnd, read_end, write_end
from verst.runtime.run.folder import RunFolder
from verst.slurm.environment import TaskEnvironment
from verst.slurm.job_states import TerminatedBy, terminated_by
from verst.slurm.site import Restart

# As Slurm 22.05 shows them, and without the fields that say nothing here.
CANCELLED = "JobState=COMPLETING Reason=None Requeue=1 Restarts=0 ExitCode=0:15 PreemptTime=None"
NODE_LOST = "JobState=COMPLETING Reason=NodeDown Requeue=0 Restarts=0 ExitCode=0:15 PreemptTime=None"
REQUEUED = "JobState=COMPLETING Reason=None Requeue=1 Restarts=1 ExitCode=0:0 PreemptTime=None"
PREEMPTED = (
    "JobState=COMPLETING Reason=None Requeue=1 Restarts=0 ExitCode=0:0 PreemptTime=2026-01-01T00:00:00"
)
RUNNING = "JobState=RUNNING Reason=None Requeue=1 Restarts=0 ExitCode=0:0 PreemptTime=None"
LIMIT = "QOSMaxSubmitJobPerUserLimit"


@pytest.mark.parametrize(
    ("shown", "why"),
    [
        (CANCELLED, "cancel"),
        (NODE_LOST, "other"),
        (NODE_LOST.replace("COMPLETING", "NODE_FAIL"), "other"),
        (CANCELLED.replace("Reason=None", "Reason=TimeLimit"), "other"),
        (REQUEUED, "requeue"),
        (PREEMPTED, "preemption"),
        (RUNNING, "unknown"),
    ],
)
def test_only_scancel_is_a_cancel(stand_in: StandIn, shown: str, why: TerminatedBy) -> None:
    stand_in.command("scontrol", f'echo "JobId=7 {shown}"\n')
    assert terminated_by("7", 0) == why


class Job:
    """A trainer's job at the end of a life that another is to follow."""

    def __init__(self, folder: Path, restart: Restart, group: str = "trainer") -> None:
        self.folder = RunFolder(folder / "run")
        self.folder.create()
        self.folder.slurm.mkdir()
        (self.folder.slurm / f"{group}.sh").write_text("#!/bin/bash\n")
        self.folder.start_generation("11.0")
        write_end(self.folder, RunEnd(3, "rank-0 failed", 0, resumes=True))
        sizes = {"trainer": GroupJobs(tasks=1, nodes=1), "rollout": GroupJobs(tasks=1, nodes=1)}
        launch = Launch(restart=restart, stop_lead_s=60, kill_wait_s=30, max_failures=1, groups=sizes)
        task = TaskEnvironment(job="7", array="7", index=0, restart=0, node=0, hosts=("n1",))
        self.events: list[tuple[str, str]] = []
        self.said: list[str] = []

        def event(kind: str, /, message: str) -> None:
            self.events.append((kind, message))

        self.back = Return(self.folder, launch, task, group, event, self.said.append)


def test_where_a_limit_forbids_another_job_it_is_requeued(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.command("sbatch", f'echo "sbatch: error: {LIMIT}" >&2; exit 1\n')
    stand_in.command("scontrol", f'[ "$1" = show ] && echo "JobId=7 {RUNNING}"; exit 0\n')
    job = Job(tmp_path, "resubmit")
    assert job.back.come_back("rank-0 failed") == 0
    assert stand_in.calls("scontrol")[-1] == "requeue 7_0"
    assert [kind for kind, _ in job.events] == ["slurm_failed", "comes_back"]
    end = read_end(job.folder, 0)
    assert end is not None
    assert end.resumes


def test_where_requeueing_is_forbidden_it_is_submitted_again(stand_in: StandIn, tmp_path: Path) -> None:
    refused = 'echo "Requested operation is presently disabled for job 7_0" >&2; exit 1'
    stand_in.command("scontrol", f'[ "$1" = show ] && echo "JobId=7 {RUNNING}" || {{ {refused}; }}\n')
    job = Job(tmp_path, "requeue")
    assert job.back.come_back("rank-0 failed") == 0
    assert [s.job for s in submissions(job.folder)] == ["11"]


@pytest.mark.parametrize("group", ["trainer", "rollout"])
def test_when_nothing_brings_the_trainer_back_the_run_ends(
    stand_in: StandIn, tmp_path: Path, group: str
) -> None:
    stand_in.command("sbatch", f'echo "sbatch: error: {LIMIT}" >&2; exit 1\n')
    refused = 'echo "Requested operation is presently disabled for job 7_0" >&2; exit 1'
    stand_in.command("scontrol", f'[ "$1" = show ] && echo "JobId=7 {RUNNING}" || {{ {refused}; }}\n')
    job = Job(tmp_path, "resubmit", group)
    assert job.back.come_back("rank-0 failed") == 1
    end = read_end(job.folder, 0)
    assert end is not None
    assert end.resumes is (group == "rollout")  # engines see this, and give back their nodes
    if group == "trainer":
        assert end.reason.startswith("rank-0 failed; trainer job 7_0 cannot come back: sbatch ")
        assert LIMIT in end.reason
        assert "presently disabled" in end.reason


def test_it_goes_on_asking_while_slurm_is_away_and_says_so_once(stand_in: StandIn, tmp_path: Path) -> None:
    away = 'echo "Unable to contact slurm controller (connect failure)" >&2; exit 1'
    stand_in.command("scontrol", f"[ $(grep -c scontrol calls) -ge 40 ] || {{ {away}; }}\n")
    job = Job(tmp_path, "requeue")
    assert job.back.come_back("rank-0 failed") == 0
    assert len(stand_in.calls("scontrol")) == 40
    assert [kind for kind, _ in job.events] == ["comes_back", "slurm_away"]
    assert "trainer job 7_0 keeps its nodes and goes on asking" in job.events[1][1]
    assert max(stand_in.pauses) == 60
