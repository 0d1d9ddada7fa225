"""`verst export`: a finished run's model as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import open_run


def export_run(source: Path, out: Path) -> int:
    """`verst export`: copies the export that a run made at its end."""
    folder = open_run(source)
    if not (folder.export / "config.json").is_file():
        raise UserError(
            f"{folder.root} has no export: a run writes it when it ends well. "
            f"`verst resume {source}` brings it to its end"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; name another")
    shutil.copytree(folder.export, out, dirs_exist_ok=True)
    print(f"{out} is a Hugging Face folder")
    return 0
