"""Implements `verst status`: shows a run's state and progress, from its folder and from Slurm's job states."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from verst.launcher.runs.ending import Ending, read_ending
from verst.launcher.runs.failures import failures, tell_failures
from verst.launcher.runs.open import is_app, is_launched, open_run
from verst.launcher.slurm.jobs import is_on_slurm, print_jobs
from verst.launcher.watch.progress import ProgressReader
from verst.launcher.watch.view import draw
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder


def show_status(run_dir: Path) -> int:
    """Implements `verst status`. Returns the exit code."""
    folder = open_run(run_dir, or_app=True)
    console = Console()
    launched = _print_state(folder, console)
    if is_app(folder):
        from verst.launcher.watch.actors_status import print_actors  # slow to import, and only apps need it

        print_actors(folder, console)
        return 0
    reader = ProgressReader(folder)
    reader.update()
    progress = reader.progress
    first, last = progress.first_time, time.time() if launched else progress.last_time
    elapsed = 0.0 if first is None or last is None else last - first
    console.print(draw(progress, elapsed=elapsed, width=min(console.width, 100)))
    checkpoint = latest(folder.checkpoints)
    console.print(f"checkpoint: {checkpoint or 'none yet'}", highlight=False, soft_wrap=True)
    for line in tell_failures(failures(folder, folder.generation)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _print_state(folder: RunFolder, console: Console) -> bool:
    """Prints the run's Slurm jobs, if any, and its overall state. Returns whether it is running or queued."""
    launched = print_jobs(folder, console) if is_on_slurm(folder) else is_launched(folder)
    state = _state_in_words(read_ending(folder, folder.generation), launched)
    console.print(f"{folder.root}: {state}, generation {folder.generation}", highlight=False, soft_wrap=True)
    return launched


def _state_in_words(ending: Ending | None, launched: bool) -> str:
    if ending is None:
        return "running" if launched else "not running"
    if ending.ok:
        return "finished"
    return f"comes back ({ending.reason})" if ending.resumes and launched else ending.reason
