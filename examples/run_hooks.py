"""Functions for the `hooks` section of a recipe: a note about the run's end, a copy of each checkpoint, own figures.

hooks: {run_end: "run_hooks:note", checkpoint_saved: "run_hooks:copy", metrics: "run_hooks:longest"}
"""

import json
import os
import shutil
from pathlib import Path

from verst.runtime.hooks.happenings import CheckpointSaved, RunEnd, StepEnd

BACKUP = Path(os.environ.get("BACKUP", "/tmp/backup"))


def note(end: RunEnd) -> None:
    """Writes how the run ended to a file; a message to a chat would go here."""
    told = {"run": end.folder.name, "ok": end.ok, "reason": end.reason}
    (BACKUP / "ended.json").write_text(json.dumps(told))


def copy(saved: CheckpointSaved) -> None:
    """Copies a checkpoint to another disk. With `timeout_s` the run waits no longer than that."""
    shutil.copytree(saved.path, BACKUP / saved.path.name, dirs_exist_ok=True)


def longest(step: StepEnd) -> dict[str, float]:
    """The longest sample of the step: reported as `own/longest`."""
    return {"longest": max(length for group in step.groups for length in group.lengths)}
