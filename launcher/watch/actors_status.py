"""Prints the status of an app of actors for `verst status`: each actor's state and restarts, and what failed first."""

from __future__ import annotations

from rich.console import Console

from verst.launcher.runs.failures import failures, restarts, tell_failures
from verst.launcher.watch.top import process_table
from verst.runtime.dashboard.processes import Processes, Row
from verst.runtime.node.actor_host import WAITING
from verst.runtime.run.ending import read_end
from verst.runtime.run.folder import RunFolder
from verst.runtime.run.line_reader import LineReader


def print_actors(folder: RunFolder, console: Console) -> None:
    """Prints the actors and failures of an app. Reads only the app's folder, and works during and after its life."""
    generation = folder.generation
    console.print(process_table(_rows(folder, generation)))
    # Failures that led to a restart count too: one of them may be the cause of all later ones.
    found = sorted(
        [*failures(folder, generation), *restarts(folder, generation)], key=lambda f: (f.echo, f.at)
    )
    for line in tell_failures(found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _rows(folder: RunFolder, generation: int) -> list[Row]:
    """One row for each planned actor.

    While an actor waits for others (`after`), its process is a member under another name. Its row is then
    "waiting".
    """
    processes = Processes(folder)
    for event in LineReader(folder.events).records():
        processes.apply_event(event)
    processes.update(generation, read_end(folder, generation))
    waiting = {row.name.removeprefix(WAITING): row for row in processes.rows if row.name.startswith(WAITING)}
    rows = []
    for row in processes.rows:
        if row.name in waiting and row.state in ("absent", "restarting"):
            one = waiting[row.name]
            row = row._replace(state="waiting", host=one.host, pid=one.pid)
        if not row.name.startswith(WAITING):
            rows.append(row)
    return rows
