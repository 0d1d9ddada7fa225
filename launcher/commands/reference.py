"""Generates docs/commands.md, the reference of every command, from the help texts.

`verst schema --commands` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HEAD = """# Commands: every option

`verst schema --commands` generates this page from the help texts; a test keeps it current. `verst -h` lists the
commands and `verst COMMAND -h` shows one.

- `RUN_DIR` is a run folder, such as `runs/quickstart`, or its name in `runs/`. Your shell completes it once
  `verst --install-completion` has run.
- `KEY=VALUE` replaces a value of the recipe: `trainer.megatron.lr=1e-6`. The value is YAML.
- A mistake that you can correct is printed to stderr, and the exit code is 2
  ([all exit codes](troubleshooting.md#exit-codes)).
"""


def command_reference(app: Any, groups: Mapping[str, Sequence[str]]) -> str:
    """The whole page as Markdown. `app` is the command, `groups` its subcommands by heading."""
    lines = [_HEAD]
    for title, names in groups.items():
        lines.append(f"\n## {title}\n")
        for name in names:
            command = app.commands[name]
            for inner in getattr(command, "commands", {}).values():
                lines += _section(f"{name} {inner.name}", inner)
            if not hasattr(command, "commands"):
                lines += _section(name, command)
    return "".join(lines)


def _section(name: str, command: Any) -> Iterator[str]:
    yield f"\n### verst {name}\n\n"
    yield " ".join((command.help or "").split()) + "\n"
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    if parameters:
        yield "\n| argument or option | meaning | default |\n|---|---|---|\n"
    for parameter in parameters:
        is_option = parameter.param_type_name == "option"
        names = ", ".join(parameter.opts) if is_option else parameter.metavar or parameter.name.upper()
        default = parameter.default
        shown = "" if default in (None, False, ()) or not is_option else f"`{default}`"
        meaning = (parameter.help or "").replace("|", "\\|")
        yield f"| `{names}` | {meaning} | {shown or ('required' if parameter.required else '')} |\n"
