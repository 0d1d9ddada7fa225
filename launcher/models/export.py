"""Implements `verst export`: copies the model of a finished run to a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run


def export_run(source: Path, out: Path) -> int:
    """Copies the export that a run made at its end. Returns the exit code. Raises UserError if there is none."""
    folder = open_run(source)
    if not (folder.export / "config.json").is_file():
        raise UserError(
            f"{folder.root} has no export: a run writes it when it finishes. "
            f"`verst resume {source}` continues the run"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another")
    shutil.copytree(folder.export, out, dirs_exist_ok=True)
    print(f"wrote {out}, a Hugging Face folder")
    return 0
