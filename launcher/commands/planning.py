"""The subcommands that look before a run: check a recipe, examine the cluster, print the recipe's keys."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import Overrides, RecipePath
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="plan for Slurm, as `verst submit` does, and print the scripts")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print JSON, for programs")] = False,
) -> None:
    """Check a recipe and show which process would run where.

    Also prints an estimate of the memory and every command. Starts and submits nothing.
    """
    raise typer.Exit(guard(_show_plan, recipe, list(overrides or []), json, slurm))


@app.command()
def doctor(
    recipe: Annotated[
        Path | None, typer.Argument(help="a recipe to check the cluster for", metavar="[RECIPE]")
    ] = None,
    overrides: Overrides = None,
    on_node: Annotated[
        bool, typer.Option("--on-node", help="also submit a short job that examines a compute node")
    ] = False,
) -> None:
    """Check what this cluster offers to runs.

    Reports on Slurm's version, preemption, requeueing and accounting, on the partitions and the file system,
    and with --on-node on a compute node's GPUs, network and clock.
    """
    from verst.launcher.slurm.doctor import examine_cluster

    raise typer.Exit(guard(examine_cluster, recipe, list(overrides or []), on_node))


@app.command()
def schema() -> None:
    """Print every key of a recipe as Markdown tables.

    docs/recipes.md is the output of this command.
    """
    from verst.launcher.recipe.reference import recipe_reference

    print(recipe_reference(), end="")


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
