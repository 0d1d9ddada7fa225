"""The `verst` command. Its subcommands are in `commands/`."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from verst.launcher.commands import actors, models, planning, running, watching
from verst.runtime.run.user import user_name

app = typer.Typer(
    name="verst",
    help="RL post-training of large language models: Megatron-Core trains, SGLang generates, no Ray.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for group in (running, planning, watching, models):
    app.add_typer(group.app)
app.add_typer(actors.app, name="actors")


@app.command()
def version() -> None:
    """Print the installed version."""
    from importlib.metadata import version as installed

    print(f"verst {installed('verst')}")


def main() -> NoReturn:
    """The entry point of the console script `verst`."""
    user_name()  # what it starts needs one
    app()
    sys.exit(0)


if __name__ == "__main__":
    main()
