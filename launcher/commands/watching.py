"""Watch a run from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import RunPath
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command()
def status(run_dir: RunPath) -> None:
    """Say how far a run is, from its folder alone."""
    from verst.launcher.watch.status import show_status

    raise typer.Exit(guard(show_status, run_dir))


@app.command()
def dash(
    run_dir: RunPath,
    port: Annotated[int, typer.Option(help="by default any that is free")] = 0,
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
) -> None:
    """Show a run in the browser: curves, phases, processes, events, samples, logs. Prints the address."""
    from verst.launcher.watch.dash import serve_dashboard

    raise typer.Exit(guard(serve_dashboard, run_dir, host, port))


@app.command()
def top(
    run_dir: RunPath,
    once: Annotated[bool, typer.Option("--once", help="print it once and leave")] = False,
) -> None:
    """Show a run in the terminal as it goes: progress, reward, phases, processes, events. q leaves."""
    from verst.launcher.watch.top import show_top

    raise typer.Exit(guard(show_top, run_dir, once))


@app.command()
def logs(
    run_dir: RunPath,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="wait for new lines")] = False,
    grep: Annotated[str | None, typer.Option(help="only lines that match this regular expression")] = None,
    process: Annotated[
        str | None, typer.Option(help="only this process, e.g. trainer-0 or controller")
    ] = None,
    attempt: Annotated[int | None, typer.Option(help="which life of the run; by default the last")] = None,
) -> None:
    """Print the logs of all processes of a run, each line after its process's name."""
    from verst.launcher.watch.logs import print_logs

    raise typer.Exit(guard(print_logs, run_dir, follow, grep, process, attempt))


@app.command()
def trace(
    run_dir: RunPath,
    steps: Annotated[
        str | None, typer.Option(help="e.g. 10:12, both included, as metrics.jsonl counts steps")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write")] = Path("trace.json"),
) -> None:
    """Merge what all processes did when into one trace, for ui.perfetto.dev or chrome://tracing."""
    from verst.launcher.watch.trace import write_trace

    raise typer.Exit(guard(write_trace, run_dir, steps, out))
