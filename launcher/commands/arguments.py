"""The arguments that several subcommands have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(help="the YAML file of the run", metavar="RECIPE")]
RunPath = Annotated[Path, typer.Argument(help="a run folder, e.g. runs/quickstart", metavar="RUN_DIR")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="dotted.key=value: replaces a value of the file", metavar="[OVERRIDES]..."),
]
RunName = Annotated[str | None, typer.Option(help="the run's name; replaces the recipe's `name`")]
