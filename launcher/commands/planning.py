"""The subcommands that look before a run: check a recipe, examine the cluster, print the recipe's keys."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from verst.launcher.commands.arguments import TAKES_OVERRIDES, Overrides, RecipePath
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command(context_settings=TAKES_OVERRIDES)
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Plan for Slurm, as `verst submit` does, and print the scripts.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check a recipe and show which process would run where.

    Also prints an estimate of the memory and every command. Starts and submits nothing.
    """
    raise typer.Exit(guard(_show_plan, recipe, list(overrides or []), json, slurm))


@app.command(context_settings=TAKES_OVERRIDES)
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe to check the cluster for.", metavar="[RECIPE]")
    ] = None,
    overrides: Overrides = None,
    on_node: Annotated[
        bool, typer.Option("--on-node", help="Also submit a short job that examines a compute node.")
    ] = False,
) -> None:
    """Check what this cluster offers to runs.

    Reports on Slurm's version, preemption, requeueing and accounting, on the partitions and the file system,
    and with --on-node on a compute node's GPUs, network and clock.
    """
    from verst.launcher.slurm.doctor import examine_cluster

    raise typer.Exit(guard(examine_cluster, recipe, list(overrides or []), on_node))


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="A Hugging Face model folder, or a hub id.", metavar="MODEL")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("recipe.yaml"),
    gpus: Annotated[int, typer.Option(min=0, help="The number of GPUs of the whole run; 0: none.")] = 8,
    gpu_gib: Annotated[float, typer.Option(min=1, help="The memory of each GPU in GiB.")] = 80.0,
    data: Annotated[Path | None, typer.Option(help="The file with the prompts, JSONL or parquet.")] = None,
    reward: Annotated[
        str, typer.Option(help="The reward: package.module:function.")
    ] = "verst.runtime.rewards:math",
) -> None:
    """Write a commented recipe for a model and a number of GPUs.

    Sizes are chosen so that weights and optimizer state fit into the GPUs, and the columns from the prompt file.
    """
    from verst.launcher.plan.new_recipe import write_recipe

    raise typer.Exit(guard(write_recipe, model, out, gpus, gpu_gib, data, reward))


@app.command("check-reward", context_settings=TAKES_OVERRIDES)
def check_reward(
    recipe: RecipePath,
    overrides: Overrides = None,
    rows: Annotated[
        int, typer.Option("--rows", "-n", min=1, help="How many rows of data.train to score.")
    ] = 8,
    answer: Annotated[
        list[str] | None, typer.Option(help="An answer to score on each row, too. May be repeated.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Call a recipe's reward on rows of its prompt file.

    No engine is needed: each row is scored with its own label as the answer, with an empty answer, and with what
    --answer gives. The exit code is 1 if a call failed.
    """
    from verst.launcher.check.hooks.reward import check_reward as check

    raise typer.Exit(guard(check, recipe, list(overrides or []), rows, list(answer or []), json))


@app.command()
def schema(
    ctx: typer.Context,
    commands: Annotated[
        bool, typer.Option("--commands", help="Print the commands and options instead.")
    ] = False,
) -> None:
    """Print every key of a recipe as Markdown tables.

    docs/recipes.md is the output of this command, and docs/commands.md that with --commands.
    """
    if commands:
        from verst.launcher.commands.reference import command_reference

        whole = ctx.find_root().command
        print(command_reference(whole, whole.groups), end="")  # type: ignore[attr-defined]
        return
    from verst.launcher.recipe.reference import recipe_reference

    print(recipe_reference(), end="")


@app.command()
def algorithms(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List the functions that come with Verst, by the key of a recipe that takes them.

    Each has its formula and its paper. A function of your own has the same place (docs/hooks.md).
    """
    from verst.launcher.check.hooks.bundled import PLACES, described_hooks

    found = {place: dict(described_hooks(place)) for place in PLACES}
    if json:
        print(dumps(found, indent=2))
        return
    for place, functions in found.items():
        print(f"{place}:")
        for path, told in functions.items():
            print(f"  {path}")
            print(fill(told, width=100, initial_indent="      ", subsequent_indent="      "))


def _show_plan(recipe_path: Path, overrides: list[str], as_json: bool, on_slurm: bool) -> int:
    from rich.console import Console

    from verst.launcher.check.check import examine
    from verst.launcher.plan.machine import Cluster, this_machine
    from verst.launcher.plan.plan import make_plan
    from verst.launcher.plan.show_plan import plan_as_data, print_plan
    from verst.launcher.plan.slurm_options import cluster_of
    from verst.launcher.runs.prepare import python_path
    from verst.launcher.slurm.launch import scripts_of, tell_unused_variables

    machine = None if on_slurm else this_machine()
    recipe = examine(recipe_path, overrides, machine)
    target = machine or cluster_of(recipe)
    plan = make_plan(recipe, recipe.run_folder, target, python_path())
    scripts: dict[str, str] = (
        scripts_of(recipe, recipe.run_folder, target) if isinstance(target, Cluster) else {}
    )
    if as_json:
        print(dumps(plan_as_data(recipe, plan, target, scripts), indent=2))
    else:
        print_plan(Console(), recipe, plan, target, scripts)
    if on_slurm:
        tell_unused_variables()
    return 0
