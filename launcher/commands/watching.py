"""The subcommands that show a run. They need only its folder, and Slurm for the state of its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import RunPath, RunPaths
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command("ls")
def list_runs(
    runs_dir: Annotated[Path, typer.Argument(help="The folder that holds the runs.", metavar="[DIR]")] = Path(
        "runs"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the runs of a folder, with their state and progress."""
    from verst.launcher.watch.list_runs import list_runs as show

    raise typer.Exit(guard(show, runs_dir, json))


@app.command()
def status(
    run_dir: RunPath,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Return 0 if the run has finished, 1 failed, 3 running, 4 stopped."),
    ] = False,
) -> None:
    """Show a run's progress, its jobs and its failures."""
    from verst.launcher.watch.status import show_status

    raise typer.Exit(guard(show_status, run_dir, json, exit_code))


@app.command()
def samples(
    run_dir: RunPath,
    step: Annotated[
        int | None, typer.Option(min=1, help="The number of the step; the last one if left out.")
    ] = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="How many answers to print at most.")
    ] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with tokens and probabilities.")] = False,
) -> None:
    """Print answers that a run kept, with their rewards."""
    from verst.launcher.watch.samples import print_samples

    raise typer.Exit(guard(print_samples, run_dir, step, count, json))


@app.command()
def compare(
    run_dirs: RunPaths,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Compare runs: what their recipes differ in and what they reached."""
    from verst.launcher.watch.compare import compare_runs

    raise typer.Exit(guard(compare_runs, run_dirs, json))


@app.command()
def logprobs(
    run_dir: RunPath,
    sample: Annotated[
        str | None,
        typer.Option(help="The sample, GROUP/INDEX as `verst samples` shows it; default: the first."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="The step; default: the last one that has the sample.")
    ] = None,
    marked: Annotated[int, typer.Option(min=0, help="How many of the largest differences to mark.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Compare engine, old, new and reference log-probabilities of one kept sample, token by token."""
    from verst.launcher.watch.logprobs import print_logprobs

    raise typer.Exit(guard(print_logprobs, run_dir, sample, step, marked, json))


@app.command()
def dash(
    run_dir: RunPath,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free port.")] = 0,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
) -> None:
    """Show a run in the browser, or all runs of a folder.

    Prints the address of a page with curves, phases, processes, events, samples and logs. Its last tab lists the runs
    beside this one and compares them.
    """
    from verst.launcher.watch.dash import serve_dashboard

    raise typer.Exit(guard(serve_dashboard, run_dir, host, port))


@app.command()
def top(
    run_dir: RunPath,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and exit.")] = False,
) -> None:
    """Show a run live in the terminal.

    Shows progress, reward, phases, processes and events. Press q to quit.
    """
    from verst.launcher.watch.top import show_top

    raise typer.Exit(guard(show_top, run_dir, once))


@app.command()
def logs(
    run_dir: RunPath,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines.")] = False,
    grep: Annotated[str | None, typer.Option(help="Only lines that match this regular expression.")] = None,
    process: Annotated[
        str | None, typer.Option(help="Only this process, e.g. trainer-0 or controller-0.")
    ] = None,
    life: Annotated[
        int | None, typer.Option(help="The life (start) of the run, counted from 0; default: the latest.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", min=0, help="Only the last so many lines.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Only lines from then on: 30s, 10m, 2h or 1d ago, 12:30, 2026-05-01 12:30."),
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
        str | None, typer.Option(help="The steps to include, e.g. 10:12, counted as in metrics.jsonl.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("trace.json"),
) -> None:
    """Merge the traces of all processes of a run into one file.

    Open it at ui.perfetto.dev or in chrome://tracing.
    """
    from verst.launcher.watch.trace import write_trace

    raise typer.Exit(guard(write_trace, run_dir, steps, out))
