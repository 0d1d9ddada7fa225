"""While slurmctld is away, `verst status` says what the folder knows and `verst cancel` stops the run all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launcher.recipes_for_tests import write_recipe
from tests.slurm.stand_in import StandIn
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.slurm.commands import cancel_run
from verst.launcher.slurm.jobs import GroupJobs, Launch, submit_script
from verst.launcher.watch.status import show_status
from verst.runtime.run.ending import RunEnd, write_end
from verst.runtime.run.folder import RunFolder

AWAY = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1\n'


@pytest.fixture
def folder(stand_in: StandIn, tmp_path: Path) -> RunFolder:
    """A submitted run in its second life, whose Slurm then goes away."""
    made = RunFolder(tmp_path / "run")
    made.create()
    made.slurm.mkdir()
    load_recipe(write_recipe(tmp_path)).write(made.recipe)
    sizes = {"trainer": GroupJobs(tasks=1, nodes=1)}
    Launch(restart="requeue", stop_lead_s=60, kill_wait_s=30, max_failures=1, groups=sizes).write(made)
    (made.slurm / "trainer.sh").write_text("#!/bin/bash\n")
    submit_script(made, "trainer", "verst submit")
    made.start_generation()
    made.start_generation()
    made.metric(kind="step", step=7, reward_mean=0.5)
    for name in ("squeue", "scancel", "scontrol"):
        stand_in.command(name, AWAY)
    return made


def test_status_says_what_the_folder_knows_before_it_asks_slurm(
    folder: RunFolder, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show_status(folder.root) == 0
    said = capsys.readouterr().out
    assert "checkpoint: none yet" in said
    assert said.index("checkpoint: none yet") < said.index("Unable to contact slurm controller")
    assert f"{folder.root}: has not ended, life 1" in said.replace("\n", " ")


def test_cancel_stops_the_run_without_slurm(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"is marked as cancelled: .* Call `verst cancel .*` again"):
        cancel_run(folder.root, now=True, wait_s=0)
    assert folder.cancelled is not None


def test_cancel_waits_for_a_run_that_stops_without_slurm(folder: RunFolder) -> None:
    write_end(folder, RunEnd(75, "stopped when asked to, and saved", 1))
    with pytest.raises(UserError, match="is marked as cancelled"):
        cancel_run(folder.root, now=False, wait_s=60)
