"""The `verst` command. Its subcommands are in `commands/`."""

from __future__ import annotations

import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from verst.launcher.commands import actors, models, planning, running, watching
from verst.runtime.run.user import user_name

# The commands as the help lists them, in the order of a user's day.
GROUPS = {
    "Before a run": ("init", "fetch", "convert", "check-reward", "plan", "doctor", "schema", "algorithms"),
    "Runs": ("run", "submit", "resume", "cancel", "replay", "rm"),
    "Watching": ("ls", "status", "top", "dash", "logs", "samples", "logprobs", "compare", "trace"),
    "Results": ("eval", "export"),
    "Other": ("actors", "version"),
}

_WHOLE = 1000  # letters of a command's first sentence, which is not cut but goes on in the next line


class _Grouped(TyperGroup):
    """A group of commands whose help lists them under headings."""

    groups = GROUPS

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands in the order of the help."""
        known = [name for names in GROUPS.values() for name in names if name in self.commands]
        return [*known, *(name for name in self.commands if name not in known)]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the commands, a section for each heading."""
        width = max(map(len, self.commands))
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (
                            name.ljust(width),
                            self.commands[name].get_short_help_str(limit=_WHOLE),
                        )
                        for name in names
                    ]
                )


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


app = typer.Typer(
    name="verst",
    help="RL post-training of large language models: Megatron-Core trains, SGLang generates, no Ray.",
    cls=_Grouped,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (planning, running, watching, models):
    app.add_typer(group.app)
app.add_typer(actors.app, name="actors")


@app.callback()
def _options(
    wanted: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the installed version and exit."
        ),
    ] = False,
) -> None:
    pass


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
