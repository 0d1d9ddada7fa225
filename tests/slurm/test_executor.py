"""The script of an array: the recipe's options as sbatch names them, one agent a node, a warning before the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from verst.slurm.executor import ArrayExecutor


def lines(tmp_path: Path, **more: Any) -> list[str]:
    made: dict[str, Any] = {"name": "r-rollout", "tasks": 3, "nodes": 2, "options": {}, **more}
    return ArrayExecutor(tmp_path / "logs", **made).text("python -m agent").splitlines()


def test_options_reach_sbatch_by_their_own_names(tmp_path: Path) -> None:
    options = {"partition": "gpu", "exclusive": True, "gpus-per-node": 8, "time": "1-00:00:00", "mem": 0}
    made = lines(tmp_path, options={**options, "oversubscribe": False, "comment": "two words"})
    for line in (
        "--partition=gpu",
        "--exclusive",
        "--gpus-per-node=8",
        "--time=1-00:00:00",
        "--mem=0",
        "--comment='two words'",
    ):
        assert f"#SBATCH {line}" in made
    assert not any("oversubscribe" in line or "wckey" in line for line in made)


def test_an_array_of_gangs_with_one_agent_on_each_node(tmp_path: Path) -> None:
    made = lines(tmp_path, throttle=2, signal_lead_s=90)
    for line in ("--array=0-2%2", "--nodes=2", "--ntasks-per-node=1", "--signal=USR2@90", "--requeue"):
        assert f"#SBATCH {line}" in made
    command = next(line for line in made if line.startswith("srun"))
    assert "--kill-on-bad-exit=1" in command
    assert command.endswith("python -m agent")


@pytest.mark.parametrize("wanted", [{}, {"signal": "USR1@5"}])
def test_the_signal_is_the_agents_whatever_the_shell_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any]
) -> None:
    monkeypatch.setattr(
        "submitit.slurm.slurm.SlurmJobEnvironment.USR_SIG", "USR1"
    )  # SUBMITIT_PREEMPT_SIGNAL=USR1
    made = lines(tmp_path, options=wanted, signal_lead_s=90)
    assert [line for line in made if "--signal" in line] == ["#SBATCH --signal=USR2@90"]


def test_what_setup_exports_reaches_the_agents_and_the_login_shells_limits_do_not(tmp_path: Path) -> None:
    made = lines(tmp_path, setup=["export A=1"])
    srun = next(number for number, line in enumerate(made) if line.startswith("srun"))
    assert made.index("export A=1") < made.index("export SLURM_EXPORT_ENV=ALL") < srun
    assert "#SBATCH --propagate=NONE" in made
    assert "#SBATCH --propagate=MEMLOCK" in lines(tmp_path, options={"propagate": "MEMLOCK"})


def test_a_single_task_is_an_array_too(tmp_path: Path) -> None:
    assert "#SBATCH --array=0-0%1" in lines(tmp_path, tasks=1)


def test_without_a_time_the_partitions_own_counts(tmp_path: Path) -> None:
    assert not any("--time" in line for line in lines(tmp_path))


def test_srun_gets_the_cores_that_sbatch_was_asked_for(tmp_path: Path) -> None:
    export = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    assert export in lines(tmp_path, options={"cpus-per-task": 16}, setup=["module load cuda"])
    assert export not in lines(tmp_path)


def test_no_requeue_is_respected(tmp_path: Path) -> None:
    made = lines(tmp_path, options={"no-requeue": True})
    assert "#SBATCH --no-requeue" in made
    assert "#SBATCH --requeue" not in made
