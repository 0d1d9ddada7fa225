"""Implements `verst rm`: removes the folders of runs that are over."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import is_run, open_run
from verst.runtime.run.folder import RunFolder


def remove_runs(run_dirs: Sequence[Path], yes: bool, still_runs: Callable[[RunFolder], str | None]) -> int:
    """Removes run folders after a question on the terminal, or at once with `yes`. Returns the exit code.

    `still_runs` tells why a run may not be removed yet. Raises UserError then, and for a folder that is no run's,
    before anything is removed.
    """
    folders = [open_run(run_dir, or_app=True) for run_dir in run_dirs]
    for folder in folders:
        if folder.root.is_symlink() or not is_run(folder.root):
            raise UserError(f"{folder.root} is a link, not a run folder: remove what it points to")
        if (reason := still_runs(folder)) is not None:
            raise UserError(f"{folder.root} {reason}")
    if not yes:
        names = ", ".join(f"{folder.root} ({_size(folder.root)})" for folder in folders)
        if not sys.stdin.isatty():
            raise UserError(f"this would remove {names}: `--yes` does it without a question")
        if input(f"remove {names}, with checkpoints and exports? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    for folder in folders:
        # The recipe goes first, so that what is left of an interrupted removal does not count as a run.
        for name in ("recipe.yaml", "actors.json"):
            (folder.root / name).unlink(missing_ok=True)
        shutil.rmtree(folder.root)
        print(f"removed {folder.root}")
    return 0


def _size(root: Path) -> str:
    total = 0
    for place, _, names in os.walk(root):
        for name in names:
            total += os.lstat(os.path.join(place, name)).st_size
    return f"{total / 2**30:.1f} GiB" if total >= 2**30 else f"{total / 2**20:.1f} MiB"
