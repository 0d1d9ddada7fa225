"""The arguments that several subcommands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run_names(incomplete: str) -> list[str]:
    """The runs that a shell may complete a RUN_DIR to: the folders in runs/."""
    found = [
        path.parent for name in ("recipe.yaml", "actors.json") for path in Path("runs").glob(f"*/{name}")
    ]
    names = [name for path in sorted(found) for name in (str(path), path.name)]
    return [name for name in names if name.startswith(incomplete)]


# What looks like an unknown option reaches the overrides, where it is refused with the right form.
TAKES_OVERRIDES = {"ignore_unknown_options": True}

RecipePath = Annotated[Path, typer.Argument(help="The YAML file of the run.", metavar="RECIPE")]
RunPath = Annotated[
    Path,
    typer.Argument(
        help="The run's folder, e.g. runs/quickstart, or its name in runs/.",
        metavar="RUN_DIR",
        autocompletion=run_names,
    ),
]
RunPaths = Annotated[
    list[Path],
    typer.Argument(
        help="The runs' folders, or their names in runs/.", metavar="RUN_DIR", autocompletion=run_names
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="a.dotted.key=value replaces a value of the file.", metavar="KEY=VALUE"),
]
RunName = Annotated[str | None, typer.Option(help="The run's name, in place of the recipe's.")]
