"""The subcommands of `verst actors`, for apps of actors. Such an app trains no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import TAKES_OVERRIDES, Overrides
from verst.launcher.commands.guard import guard

app = typer.Typer(help="Run your own actors: services and programs that train no model.")

AppPath = Annotated[Path, typer.Argument(help="The YAML file of the app.", metavar="APP")]


@app.command("run", context_settings=TAKES_OVERRIDES)
def run_actors(app_file: AppPath, overrides: Overrides = None) -> None:
    """Run an app of actors on this machine.

    The app ends when its main function returns, when an actor fails for good, or on Ctrl-C.
    """
    from verst.launcher.actors.commands import run_app

    raise typer.Exit(guard(run_app, app_file, list(overrides or [])))


@app.command("submit", context_settings=TAKES_OVERRIDES)
def submit_actors(app_file: AppPath, overrides: Overrides = None) -> None:
    """Submit an app of actors to Slurm, as one job for all its nodes."""
    from verst.launcher.actors.commands import submit_app

    raise typer.Exit(guard(submit_app, app_file, list(overrides or [])))
