"""Implements `verst status`: shows a run's state and progress, from its folder and from Slurm's job states."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.ending import Ending, read_ending
from verst.launcher.runs.failures import failures, tell_failures
from verst.launcher.runs.open import is_app, is_launched, open_run
from verst.launcher.slurm.jobs import is_on_slurm, print_jobs
from verst.launcher.watch.progress import ProgressReader
from verst.launcher.watch.state import summaries
from verst.launcher.watch.view import draw
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder


def show_status(run_dir: Path, as_json: bool = False, exit_code: bool = False) -> int:
    """Implements `verst status`. Returns the exit code; with `exit_code` that says how the run is (`state.py`)."""
    folder = open_run(run_dir, or_app=True)
    code = 0
    if as_json or exit_code:
        (summary,), fault = summaries([folder])
        if fault:
            raise UserError(fault)
        code = summary.exit_code if exit_code else 0
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(summary)).decode())
    else:
        _show(folder)
    return code


def _show(folder: RunFolder) -> None:
    """What the folder says comes first: Slurm may answer late or not at all."""
    console = Console()
    on_slurm = is_on_slurm(folder)
    if not on_slurm:
        launched = is_launched(folder)
        _print_state(folder, console, launched)
        _print_folder(folder, console, launched)
        return
    _print_folder(folder, console, launched=False)
    try:
        _print_state(folder, console, print_jobs(folder, console))
    except UserError as error:
        console.print(f"Slurm does not say what its jobs do: {error}", highlight=False, soft_wrap=True)
        _print_state(folder, console, None)


def _print_folder(folder: RunFolder, console: Console, launched: bool) -> None:
    """Prints what the folder says of the run. `launched`: whether its time runs on."""
    if is_app(folder):
        from verst.launcher.watch.actors_status import print_actors  # slow to import, and only apps need it

        print_actors(folder, console)
        return
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


def _print_state(folder: RunFolder, console: Console, launched: bool | None) -> None:
    """Prints the run's overall state. `launched`: whether it is running or queued; None if nobody knows."""
    ending = read_ending(folder, folder.generation)
    line = Text.assemble(
        f"{folder.root}: ",
        (_state_in_words(ending, launched), "" if ending is None else ending.style),
        f", life {folder.generation}",
    )
    console.print(line, highlight=False, soft_wrap=True)


def _state_in_words(ending: Ending | None, launched: bool | None) -> str:
    if ending is None:
        return {True: "running", False: "not running", None: "has not ended"}[launched]
    if ending.ok:
        return "finished"
    return f"comes back ({ending.reason})" if ending.resumes and launched is not False else ending.reason
