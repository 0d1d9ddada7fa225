"""The script of a heterogeneous job, and who its tasks are."""

from __future__ import annotations

from pathlib import Path

import pytest

from verst.slurm.environment import TaskEnvironment
from verst.slurm.het import Component, het_script
from verst.slurm.job_states import _by_job

TWO = [
    Component("r-a", 2, {"gpus-per-node": 8, "exclusive": True, "cpus-per-task": 64}, "python -m agent a"),
    Component("r-b", 3, {"partition": "cheap", "no-requeue": True}, "apptainer exec x.sif python -m agent b"),
]


def script() -> str:
    return het_script(
        Path("/runs/my run/logs"), TWO, setup=["module load x"], srun=["--mpi=none"], signal_lead_s=90
    )


def test_each_component_asks_for_its_own_and_nothing_of_the_others() -> None:
    first, second = script().partition("#SBATCH hetjob\n")[::2]
    options = [[line.removeprefix("#SBATCH --") for line in part.splitlines()] for part in (first, second)]
    common = {"ntasks-per-node=1", "signal=USR2@90"}
    own = {"job-name=r-a", "nodes=2", "gpus-per-node=8", "exclusive", "cpus-per-task=64", "requeue"}
    assert {*own, *common, "open-mode=append", "output='/runs/my run/logs/%j_log.out'"} <= set(options[0])
    assert options[1][: options[1].index("")] == [
        "job-name=r-b",
        "no-requeue",
        "nodes=3",
        "ntasks-per-node=1",
        "partition=cheap",
        "propagate=NONE",
        "signal=USR2@90",
    ]


def test_one_srun_starts_all_components() -> None:
    *_, setup, environment, srun = script().splitlines()
    assert setup == "module load x"
    assert environment == "export SLURM_EXPORT_ENV=ALL"  # whatever SBATCH_EXPORT was
    first, second = srun.removeprefix("srun ").split(" : ")
    flags = "--unbuffered --kill-on-bad-exit=1 --wait=0"
    logs = "--output='/runs/my run/logs'/\"$SLURM_JOB_ID\""
    assert (
        first == f"--het-group=0 {flags} --cpus-per-task=64 --mpi=none {logs}+0_%n_log.out python -m agent a"
    )
    assert (
        second
        == f"--het-group=1 {flags} --mpi=none {logs}+1_%n_log.out apptainer exec x.sif python -m agent b"
    )


# As Slurm 22.05 sets them in the tasks of a job with components of two and three nodes.
HET = {
    "SLURM_JOB_ID": "12",
    "SLURM_HET_SIZE": "2",
    "SLURM_JOB_NODELIST": "n[1-5]",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "n[1-2]",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "n[3-5]",
}


@pytest.mark.parametrize(
    ("number", "node", "hosts"),
    [
        (0, 0, ("n1", "n2")),
        (1, 1, ("n1", "n2")),
        (2, 0, ("n3", "n4", "n5")),
        (4, 2, ("n3", "n4", "n5")),
    ],
)
def test_a_task_knows_its_place_in_its_component(number: int, node: int, hosts: tuple[str, ...]) -> None:
    task = TaskEnvironment.read(HET | {"SLURM_NODEID": str(number), "SLURM_RESTART_COUNT": "1"})
    assert (task.node, task.hosts, task.index) == (node, hosts, 0)
    assert (task.name, task.life) == ("12", "12.1")  # one job and one life, whichever the component


def test_states_of_the_components_are_those_of_the_job() -> None:
    found = _by_job(["12+0|RUNNING|None|n[1-2]", "12+1|PENDING|BeginTime|"])
    assert [(s.job, s.state) for s in found["12"]] == [("12+0", "RUNNING"), ("12+1", "PENDING")]
