"""The `verst` command. Each subcommand imports what it needs when it runs: `verst --help` is quick."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(
    name="verst",
    help="RL post-training of large language models: Megatron-Core trains, SGLang generates, no Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# A person can act on these; any other is a bug of ours.
_DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

RecipePath = Annotated[Path, typer.Argument(help="the YAML file of the run", metavar="RECIPE")]
RunPath = Annotated[Path, typer.Argument(help="a run folder, e.g. runs/quickstart", metavar="RUN_DIR")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="dotted.place=value, e.g. trainer.megatron.lr=1e-6", metavar="[OVERRIDES]..."),
]


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="the run's name, instead of the recipe's")] = None,
    check_weights: Annotated[
        bool,
        typer.Option(
            "--check-weights", help="compare every engine tensor with the trainer's after each sync"
        ),
    ] = False,
) -> None:
    """Run a recipe on this machine and show it."""
    from verst.launcher.commands import run_recipe

    changes = list(overrides or [])
    if name is not None:
        changes.append(f"name={name}")
    if check_weights:
        changes.append("weights.check=true")
    raise typer.Exit(_guard(run_recipe, recipe, changes))


@app.command()
def submit(
    recipe: RecipePath,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="the run's name, instead of the recipe's")] = None,
) -> None:
    """Submit a recipe to Slurm: from then on the run lives in its jobs and comes back by itself."""
    from verst.launcher.slurm_commands import submit_recipe

    changes = [*(overrides or []), *([] if name is None else [f"name={name}"])]
    raise typer.Exit(_guard(submit_recipe, recipe, changes))


@app.command()
def cancel(
    run_dir: RunPath,
    now: Annotated[bool, typer.Option("--now", help="do not wait for a checkpoint")] = False,
    wait: Annotated[float, typer.Option(help="seconds to wait for the run to stop and save")] = 300.0,
) -> None:
    """Stop a run on Slurm, with a checkpoint if it is running, and take its jobs back."""
    from verst.launcher.slurm_commands import cancel_run

    raise typer.Exit(_guard(cancel_run, run_dir, now, wait))


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="a recipe whose jobs to think of", metavar="[RECIPE]")
    ] = None,
    overrides: Overrides = None,
    on_node: Annotated[
        bool, typer.Option("--on-node", help="also submit a short job that looks at a compute node")
    ] = False,
) -> None:
    """Say what this cluster offers to runs: Slurm, preemption, accounting, file system, GPUs."""
    from verst.launcher.doctor import examine_cluster

    raise typer.Exit(_guard(examine_cluster, recipe, list(overrides or []), on_node))


@app.command()
def resume(run_dir: RunPath, overrides: Overrides = None) -> None:
    """Go on with a run from its last checkpoint, perhaps with overrides such as algorithm.steps=100."""
    from verst.launcher.commands import resume_run

    raise typer.Exit(_guard(resume_run, run_dir, list(overrides or [])))


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="as `verst submit` would run it, with the sbatch scripts")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON for programs")] = False,
) -> None:
    """Check a recipe and print what would run where. Starts and submits nothing."""
    from verst.launcher.commands import show_plan

    raise typer.Exit(_guard(show_plan, recipe, list(overrides or []), json, slurm))


@app.command()
def status(run_dir: RunPath) -> None:
    """Say how far a run is, from its folder alone."""
    from verst.launcher.commands import show_status

    raise typer.Exit(_guard(show_status, run_dir))


@app.command()
def dash(
    run_dir: RunPath,
    port: Annotated[int, typer.Option(help="by default any that is free")] = 0,
    host: Annotated[str, typer.Option(help="the address to listen on")] = "127.0.0.1",
) -> None:
    """Show a run in the browser: curves, phases, processes, events, samples, logs. Prints the address."""
    from verst.launcher.dash import serve_dashboard

    raise typer.Exit(_guard(serve_dashboard, run_dir, host, port))


@app.command()
def top(
    run_dir: RunPath,
    once: Annotated[bool, typer.Option("--once", help="print it once and leave")] = False,
) -> None:
    """Show a run in the terminal as it goes: progress, reward, phases, processes, events. q leaves."""
    from verst.launcher.top import show_top

    raise typer.Exit(_guard(show_top, run_dir, once))


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
    from verst.launcher.logs import print_logs

    raise typer.Exit(_guard(print_logs, run_dir, follow, grep, process, attempt))


@app.command()
def trace(
    run_dir: RunPath,
    steps: Annotated[
        str | None, typer.Option(help="e.g. 10:12, both included, as metrics.jsonl counts steps")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="the file to write")] = Path("trace.json"),
) -> None:
    """Merge what all processes did when into one trace, for ui.perfetto.dev or chrome://tracing."""
    from verst.launcher.trace import write_trace

    raise typer.Exit(_guard(write_trace, run_dir, steps, out))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="a run folder", metavar="RUN_DIR")],
    out: Annotated[Path, typer.Argument(help="where the Hugging Face folder is put", metavar="OUT")],
) -> None:
    """Copy a finished run's model as a Hugging Face folder."""
    from verst.launcher.commands import export_run

    raise typer.Exit(_guard(export_run, source, out))


@app.command()
def fetch(
    model: Annotated[str, typer.Argument(help="smollm2-135m or tiny-moe", metavar="MODEL")],
    dest: Annotated[Path | None, typer.Argument(help="by default models/MODEL", metavar="[DEST]")] = None,
) -> None:
    """Make the model folder of a bundled recipe, and the prompts that go with it."""
    from verst.launcher.fetch import fetch_bundled

    raise typer.Exit(_guard(fetch_bundled, model, dest))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="a Hugging Face model folder", metavar="SOURCE")],
    target: Annotated[Path, typer.Argument(help="where the converted folder is put", metavar="TARGET")],
    format: Annotated[str, typer.Option("--format", help="bf16, fp8, mxfp8, nvfp4 or int4")],
    block: Annotated[str | None, typer.Option(help="of fp8, by default 128x128")] = None,
    ue8m0: Annotated[bool, typer.Option("--ue8m0", help="fp8 with scales that are powers of two")] = False,
    group_size: Annotated[int | None, typer.Option(help="of int4: 32, 64 or 128 (the default)")] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="a layer to leave alone: part of its path, *, or re:REGEX; repeat"),
    ] = None,
    device: Annotated[str, typer.Option(help="where to compute, e.g. cuda; the bytes are the same")] = "cpu",
) -> None:
    """Convert a model folder to the format an engine serves, or back to bf16."""
    from verst.launcher.convert import convert_folder

    raise typer.Exit(
        _guard(convert_folder, source, target, format, block, ue8m0, group_size, list(ignore or []), device)
    )


@app.command()
def schema() -> None:
    """Print every key of a recipe as a Markdown table: docs/recipes.md is made by this."""
    from verst.launcher.schema import recipe_reference

    print(recipe_reference(), end="")


actors_app = typer.Typer(help="Run actors of your own: services and programs that train no model.")
app.add_typer(actors_app, name="actors")
AppPath = Annotated[Path, typer.Argument(help="the YAML file of the app", metavar="APP")]


@actors_app.command("run")
def run_actors(app_file: AppPath, overrides: Overrides = None) -> None:
    """Run an app of actors on this machine until its main function ends, or Ctrl-C."""
    from verst.launcher.actors_commands import run_app

    raise typer.Exit(_guard(run_app, app_file, list(overrides or [])))


@actors_app.command("submit")
def submit_actors(app_file: AppPath, overrides: Overrides = None) -> None:
    """Submit an app of actors to Slurm as one job of all its nodes."""
    from verst.launcher.actors_commands import submit_app

    raise typer.Exit(_guard(submit_app, app_file, list(overrides or [])))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"verst {installed('verst')}")


def _guard[**P](command: Callable[P, int], *arguments: P.args, **options: P.kwargs) -> int:
    """Runs a command; errors that a person can act on are printed without a traceback."""
    from verst.launcher.faults import UserError

    try:
        return command(*arguments, **options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # `verst logs | head`: the reader has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        print(f"{error.filename or 'a file'} cannot be written: {error.strerror}", file=sys.stderr)
        return 1


def main() -> NoReturn:
    """The console script."""
    app()
    sys.exit(0)


if __name__ == "__main__":
    main()
