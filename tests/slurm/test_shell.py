"""What the shell has set changes neither Verst's own Slurm commands nor its jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.stand_in import StandIn
from verst.slurm.programs import call
from verst.slurm.shell import environment_for_slurm, unused_variables
from verst.slurm.submission import TOKEN, submit

HOSTILE = {
    "SQUEUE_PARTITION": "high",
    "SQUEUE_SORT": "i",
    "SACCT_FORMAT": "JobID",
    "SINFO_FORMAT": "%P",
    "SCANCEL_STATE": "PENDING",
    "SCONTROL_ALL": "1",
    "SBATCH_PARTITION": "cancelled",
    "SBATCH_SIGNAL": "USR1@10",
    "SBATCH_EXPORT": "NONE",
    "SLURM_TIMELIMIT": "1",
    "SLURM_MEM_PER_CPU": "500",
    "SLURM_CLUSTERS": "other",
    "SLURM_TIME_FORMAT": "relative",
    "SRUN_CPUS_PER_TASK": "1",
    "SALLOC_PARTITION": "high",
    "PMI_RANK": "3",
    "SUBMITIT_PREEMPT_SIGNAL": "USR1",
    "VERST_GENERATION": "7",
}
GOOD = {
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_JWT": "secret",
    "HF_HOME": "/scratch/hf",
    "SQUEUEZE": "1",
}


@pytest.mark.parametrize("in_job", [False, True])
def test_only_what_is_on_the_list_is_passed_on(in_job: bool) -> None:
    job = {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"} if in_job else {}
    assert environment_for_slurm({**HOSTILE, **GOOD, **job}) == GOOD


def test_every_command_is_called_without_them(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**HOSTILE, **GOOD}.items():
        monkeypatch.setenv(name, value)
    call(["squeue"])
    assert set(HOSTILE).isdisjoint(stand_in.environment)
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n")
    submit(script)
    seen = stand_in.environment
    assert set(HOSTILE).isdisjoint(seen)
    assert GOOD.items() <= seen.items()
    assert seen[TOKEN]


def test_what_has_no_effect_is_said_with_the_key_to_use() -> None:
    shell = {"SBATCH_TIMELIMIT": "77", "SBATCH_NO_REQUEUE": "", "SBATCH_SIGNAL": "USR1", **GOOD}
    no_effect = "of this shell has no effect: only the recipe says how its jobs are submitted"
    assert list(unused_variables(shell)) == [
        f"SBATCH_NO_REQUEUE= {no_effect} (slurm.sbatch: {{no-requeue: true}})",
        f"SBATCH_SIGNAL=USR1 {no_effect} (--signal: use slurm.stop_lead_s)",
        f"SBATCH_TIMELIMIT=77 {no_effect} (slurm.sbatch: {{time: 77}})",
    ]
    assert len(list(unused_variables({"SLURM_MEM_PER_CPU": "500"}))) == 1
    assert list(unused_variables({"SLURM_MEM_PER_CPU": "500", "SLURM_JOB_ID": "1"})) == []
