"""Implements `verst ls`: lists the runs of a folder, a line for each."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verst.launcher.recipe.faults import UserError
from verst.launcher.runs.open import run_folders
from verst.launcher.watch.state import Summary, ago, summaries
from verst.launcher.watch.view import duration
from verst.runtime.run.folder import RunFolder

STYLES = {
    "running": "green", "finished": "blue", "comes back": "yellow", "waiting": "yellow", "stopped": "yellow",
    "failed": "red", "cancelled": "red", "not running": "red",
}  # fmt: skip


def list_runs(runs_dir: Path, as_json: bool) -> int:
    """Prints the runs in `runs_dir`, the last changed first. Returns the exit code."""
    if not runs_dir.is_dir():
        raise UserError(f"there is no folder {runs_dir}: `verst ls DIR` lists the runs in DIR")
    found, fault = summaries(RunFolder(root) for root in run_folders(runs_dir))
    found.sort(key=lambda run: run.updated or 0.0, reverse=True)
    if fault:
        print(f"Slurm does not answer, so the states of its jobs are not known: {fault}", file=sys.stderr)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    elif not found:
        print(f"there are no runs in {runs_dir}")
    else:
        Console().print(_table(found))
    return 0


def _table(found: list[Summary]) -> Table:
    columns = ("run", "state", "life", "step", "reward", "held-out", "left", "changed")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for run in found:
        held_out = "" if run.held_out is None else f"{run.held_out:.3f} after {run.held_out_step or 0}"
        table.add_row(
            Text(run.name),
            Text(run.state, style=STYLES.get(run.state, "dim")),
            "" if run.life is None else str(run.life),
            f"{run.steps}/{run.steps_planned}" if run.kind == "run" else "app",
            "" if run.reward is None else f"{run.reward:.3f}",
            held_out,
            "" if run.seconds_left is None else duration(run.seconds_left),
            f"{ago(run.updated)} ago" if run.updated else "",
        )
    return table
