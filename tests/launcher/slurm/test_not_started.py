"""When the agent of the first node cannot be started, the script tells it and tries another node, with real bash."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from verst.launcher.slurm.jobs import submissions
from verst.launcher.slurm.not_started import BEFORE, after_srun
from verst.runtime.run.ending import last_end
from verst.runtime.run.folder import RunFolder

SRUN_FAILS = 'echo "srun: error: n3: task 0: Exited with exit code 127" >&2; exit 127'
JOB = {
    "SLURM_JOB_ID": "12",
    "SLURM_ARRAY_JOB_ID": "11",
    "SLURM_ARRAY_TASK_ID": "2",
    "SLURMD_NODENAME": "n1",
    "SLURM_CONF": "/etc/slurm.conf",
    "VERST_SUBMISSION": "verst-1",
}


class Script:
    """The end of a trainer's script in a folder of its own, with stand-ins for srun, sbatch and scontrol."""

    def __init__(self, folder: Path, srun: str = SRUN_FAILS, state: str = "RUNNING") -> None:
        self.run_folder = RunFolder(folder / "run")
        self.run_folder.create()
        self.run_folder.slurm.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.command("srun", srun)
        self.command("scontrol", f"echo JobId=12 JobState={state}")
        self.command("sbatch", f'echo "$*" >> {folder}/sbatch; env >> {folder}/env; echo "13;c"')
        self.folder = folder

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o700)

    def run(self, *, max_tries: int = 2, excluded: str = "", chained: bool = False) -> int:
        after = after_srun(
            "trainer",
            2,
            script="trainer",
            leads=True,
            max_tries=max_tries,
            excluded=excluded,
            chained=chained,
        )
        path = self.folder / "script.sh"
        path.write_text("\n".join(["#!/bin/bash", BEFORE, "srun python", *after, ""]))
        with open(self.folder / "job.log", "a") as log:
            environment = {**JOB, "PATH": f"{self.bin}:{os.environ['PATH']}"}
            argv = ["bash", str(path)]
            done = subprocess.run(
                argv, env=environment, cwd=self.run_folder.root, stdout=log, stderr=log, timeout=20
            )
        return done.returncode

    def events(self) -> list[tuple[str, str]]:
        path = self.run_folder.events
        events = map(json.loads, path.read_text().splitlines()) if path.exists() else []
        return [(event["kind"], event["message"]) for event in events]

    def calls(self) -> list[str]:
        path = self.folder / "sbatch"
        return path.read_text().splitlines() if path.exists() else []


def test_it_is_told_and_tried_elsewhere_a_bounded_number_of_times(tmp_path: Path) -> None:
    script = Script(tmp_path)
    assert script.run(max_tries=1, excluded="n9") == 127
    log = tmp_path / "job.log"
    assert script.events() == [
        (
            "agent_not_started",
            f"trainer job 11_2: the agent could not be started on n3 (exit code 127); log: {log}",
        ),
        ("comes_back", "trainer job 11_2: submitted again as job 13, without n3,n9"),
    ]
    assert script.calls() == ["--parsable --exclude=n3,n9 --array=2 slurm/trainer.sh"]
    assert [(s.job, s.group, s.why) for s in submissions(script.run_folder)] == [
        ("13", "trainer", "its agent could not be started")
    ]
    handed_on = (tmp_path / "env").read_text().splitlines()
    assert [line for line in handed_on if line.startswith(("SLURM", "VERST"))] == [
        "SLURM_CONF=/etc/slurm.conf"
    ]
    assert last_end(script.run_folder) is None

    script.command("srun", SRUN_FAILS.replace("n3: task 0", "n[4-5]: tasks 0-1"))
    assert script.run(max_tries=1) == 127
    assert script.events()[-1] == (
        "gave_up",
        "trainer job 11_2: its agent could not be started 2 times; it is not tried again",
    )
    assert len(script.calls()) == 1
    end = last_end(script.run_folder)
    assert end is not None
    assert (end.code, end.generation, end.resumes) == (1, 0, False)
    assert end.reason.startswith("trainer job 11_2: the agent could not be started on n3,n[4-5]; log: ")


@pytest.mark.parametrize(
    ("message", "node"),
    [
        ("srun: error: Task launch for StepId=12.0 failed on node n7: No such file or directory", "n7"),
        ("srun: command not found", "n1"),
    ],
)
def test_the_node_is_the_one_that_srun_names_else_the_scripts(
    tmp_path: Path, message: str, node: str
) -> None:
    script = Script(tmp_path, srun=f'echo "{message}" >&2; exit 1')
    assert script.run() == 1
    assert script.calls() == [f"--parsable --exclude={node} --array=2 slurm/trainer.sh"]


def test_nodes_whose_tasks_srun_itself_has_ended_are_not_at_fault(tmp_path: Path) -> None:
    said = "srun: error: n1: task 0: Terminated\nsrun: error: n3: task 1: Exited with exit code 127"
    script = Script(tmp_path, srun=f'printf "{said}\n" >&2; exit 127')
    assert script.run() == 127
    assert script.calls() == ["--parsable --exclude=n3 --array=2 slurm/trainer.sh"]
    script.command("srun", 'echo "srun: error: n4: task 1: Killed" >&2; exit 137')
    assert script.run() == 137
    assert script.calls()[-1] == "--parsable --exclude=n3,n4 --array=2 slurm/trainer.sh"


def test_an_agent_that_has_started_tells_its_end_itself(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.run_folder.claim("trainer", 4, "12.0")  # node 0 of task 2, of two nodes
    assert script.run() == 127
    assert (script.events(), script.calls()) == ([], [])


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_cancelled_job_stays_away(tmp_path: Path, state: str) -> None:
    script = Script(tmp_path, state=state)
    assert script.run() == 127
    assert (script.events(), script.calls()) == ([], [])


def test_a_good_end_is_left_alone(tmp_path: Path) -> None:
    script = Script(tmp_path, srun="exit 0")
    assert script.run() == 0
    assert (script.events(), script.calls()) == ([], [])


def test_in_a_chain_the_next_job_goes_on(tmp_path: Path) -> None:
    script = Script(tmp_path)
    assert script.run(chained=True, max_tries=0) == 127
    assert [kind for kind, _ in script.events()] == ["agent_not_started"]
    assert (script.calls(), last_end(script.run_folder)) == ([], None)


def test_without_a_node_left_the_run_ends(tmp_path: Path) -> None:
    script = Script(tmp_path)
    script.command("sbatch", 'echo "Requested node configuration is not available" >&2; exit 1')
    assert script.run() == 127
    assert [kind for kind, _ in script.events()] == ["agent_not_started", "gave_up"]
    assert last_end(script.run_folder) is not None
