"""A run whose disk becomes full, or cannot be written at all: it says so, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.test_tiny_moe import trajectory
from tests.runs.test_tiny_moe import undisturbed as undisturbed
from tests.runs.tiny_moe import RECIPE, SHORT, tiny_run
from tests.small_disk import SmallDisk
from verst.launcher.plan.machine import this_machine
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.prepare import prepare_resume
from verst.runtime.run.checkpoints import latest, read_manifest
from verst.runtime.run.ending import last_end
from verst.runtime.run.folder import RunFolder

NO_SPACE = "No space left on device"
# A checkpoint takes 29 MB, and two are kept: the third does not fit beside them.
TWO_CHECKPOINTS_KIB = 72 << 10


@pytest.mark.long
@pytest.mark.timeout(800)
def test_a_run_that_fills_its_disk_says_so_and_goes_on_where_it_was_once_there_is_space(
    model: Path, undisturbed, small_disk: SmallDisk
) -> None:
    small_disk.mount(TWO_CHECKPOINTS_KIB)
    run = tiny_run(model, small_disk.path / "run", *SHORT)
    run.printed = small_disk.path.parent / "run.out"
    process = run.start()
    assert run.wait(process, 300) == 1, run.output()
    assert run.processes() == []
    told = run.printed.read_text()
    assert "could not be written" in told
    assert NO_SPACE in told
    assert str(run.folder) in told
    folder = RunFolder(run.folder)
    end = last_end(folder)
    assert end is not None
    assert end.code != 0
    assert NO_SPACE in end.reason or any(
        NO_SPACE in e["message"] for e in run.lines("failed", "events.jsonl")
    )
    kept = latest(folder.checkpoints)
    assert kept is not None
    assert read_manifest(kept).version == int(kept.name.removeprefix("step-"))
    assert [p.name for p in folder.checkpoints.glob(".*")] == []
    done = [step for step, *_ in trajectory(run)]
    assert done != [0, 1, 2, 3]

    small_disk.resize(4 * TWO_CHECKPOINTS_KIB)
    run.finish(resume=True)
    assert any(kept.name in e["message"] for e in run.lines("resume", "events.jsonl"))
    assert trajectory(run) == trajectory(undisturbed)


@pytest.mark.parametrize(
    ("spoil", "why"), [("fill", "No space left on device"), ("read_only", "Read-only file system")]
)
def test_a_run_that_cannot_write_its_folder_is_refused_in_a_line_with_the_path(
    model: Path, small_disk: SmallDisk, spoil: str, why: str
) -> None:
    small_disk.mount(64)
    getattr(small_disk, spoil)()
    run = tiny_run(model, small_disk.path / "run", *SHORT)
    run.printed = small_disk.path.parent / "run.out"
    assert run.wait(run.start(), 60) == 2
    told = run.printed.read_text()
    assert why in told
    assert str(run.folder) in told
    assert "Traceback" not in told
    assert len(told.splitlines()) == 1
    assert run.processes() == []


def test_resuming_on_a_disk_that_is_still_full_is_refused_and_changes_nothing(
    model: Path, small_disk: SmallDisk
) -> None:
    small_disk.mount(256)
    run = tiny_run(model, small_disk.path / "run", *SHORT)
    run.printed = small_disk.path.parent / "run.out"
    folder = RunFolder(run.folder)
    folder.create()
    recipe = load_recipe(RECIPE, [*run.overrides, f"runs_dir={small_disk.path}", "name=run"])
    prepare_resume(folder, recipe, this_machine())
    folder.start_generation()
    small_disk.fill()
    before = {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()}
    assert run.wait(run.start(resume=True), 60) == 2
    told = run.printed.read_text()
    assert f"cannot resume {run.folder}: No space left on device" in told
    assert "Traceback" not in told
    after = {path.name: path.read_bytes() for path in folder.root.iterdir() if path.is_file()}
    after.pop("launcher.lock", None)
    assert after == before
