"""The subcommands that show a run. They need only its folder, and Slurm for the state of its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import RunPath
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command()
def status(run_dir: RunPath) -> None:
    """Show a run's progress, its jobs and its failures."""
    from verst.launcher.watch.status import show_status

    raise typer.Exit(guard(show_status, run_dir))


@app.command()
def dash(
    run_dir: RunPath,
    port: Annotated[int, typer.Option(min=0, max=65535, help="the port to listen on; 0: any free port")] = 0,
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
) -> None:
    """Show a run in the browser.

    Prints the address of a page with curves, phases, processes, events, samples and logs.
    """
    from verst.launcher.watch.dash import serve_dashboard

    raise typer.Exit(guard(serve_dashboard, run_dir, host, port))


@app.command()
def top(
    run_dir: RunPath,
    once: Annotated[bool, typer.Option("--once", help="print one frame and exit")] = False,
) -> None:
    """Show a run live in the terminal.

    Shows progress, reward, phases, processes and events. Press q to quit.
    """
    from verst.launcher.watch.top import show_top

    raise typer.Exit(guard(show_top, run_dir, once))


@app.command()
def logs(
    run_dir: RunPath,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep printing new lines")] = False,
    grep: Annotated[str | None, typer.Option(help="only lines that match this regular expression")] = None,
    process: Annotated[
        str | None, typer.Option(help="only this process, e.g. trainer-0 or controller-0")
    ] = None,
    life: Annotated[
        int | None, typer.Option(help="the life (start) of the run, counted from 0; default: the latest")
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="only the last so many lines")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="only lines from then on: 30s, 10m, 2h or 1d ago, 12:30, 2026-05-01 12:30"),
    ] = None,
) -> None:
    """Print the logs of all processes of a run, merged by time.

    Each line begins with the name of its process.
    """
    raise typer.Exit(guard(_logs, run_dir, follow, life, process, grep, since, tail))


def _logs(
    run_dir: Path,
    follow: bool,
    life: int | None,
    process: str | None,
    grep: str | None,
    since: str | None,
    tail: int | None,
) -> int:
    from verst.launcher.watch.logs import Wanted, print_logs

    return print_logs(run_dir, follow, Wanted(life=life, process=process, grep=grep, since=since, tail=tail))


@app.command()
def trace(
    run_dir: RunPath,
    steps: Annotated[
        str | None, typer.Option(help="the steps to include, e.g. 10:12, counted as in metrics.jsonl")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write")] = Path("trace.json"),
) -> None:
    """Merge the traces of all processes of a run into one file.

    Open it at ui.perfetto.dev or in chrome://tracing.
    """
    from verst.launcher.watch.trace import write_trace

    raise typer.Exit(guard(write_trace, run_dir, steps, out))
