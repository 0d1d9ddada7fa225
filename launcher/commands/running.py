"""The subcommands that start, stop and resume a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from verst.launcher.commands.arguments import (
    TAKES_OVERRIDES,
    Overrides,
    RecipePath,
    RunName,
    RunPath,
    RunPaths,
)
from verst.launcher.commands.guard import guard

app = typer.Typer()


@app.command(context_settings=TAKES_OVERRIDES)
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    name: RunName = None,
    check_weights: Annotated[
        bool,
        typer.Option(
            "--check-weights", help="After each weight sync, compare every engine tensor with the trainer's."
        ),
    ] = False,
    train_only: Annotated[
        Path | None,
        typer.Option(
            "--train-only",
            metavar="RUN_DIR",
            help="Train on the groups that another run kept (record.keep), step by step, without engines.",
        ),
    ] = None,
    rollout_only: Annotated[
        bool,
        typer.Option(
            "--rollout-only", help="Generate, score and keep the groups of each step; train on none of them."
        ),
    ] = False,
) -> None:
    """Run a recipe on this machine and show its progress.

    Overrides change the recipe, e.g. trainer.megatron.lr=1e-6.
    """
    from verst.launcher.local.commands import run_recipe
    from verst.launcher.runs.open import named_run

    changes = list(overrides or [])
    if name is not None:
        changes.append(f"name={name}")
    if check_weights:
        changes.append("weights.check=true")
    if rollout_only:
        changes += ["record.keep=true", "record.generate_only=true"]
    if train_only is not None:
        changes += [f"record.source={json.dumps(str(named_run(train_only)))}", "record.keep=false"]
    raise typer.Exit(guard(run_recipe, recipe, changes))


@app.command(context_settings=TAKES_OVERRIDES)
def submit(
    recipe: RecipePath,
    overrides: Overrides = None,
    name: RunName = None,
) -> None:
    """Submit a recipe to Slurm.

    No process stays on this machine. An interrupted run comes back by itself.
    Overrides change the recipe, e.g. trainer.megatron.lr=1e-6.
    """
    from verst.launcher.slurm.commands import submit_recipe

    changes = [*(overrides or []), *([] if name is None else [f"name={name}"])]
    raise typer.Exit(guard(submit_recipe, recipe, changes))


@app.command()
def cancel(
    run_dir: RunPath,
    now: Annotated[bool, typer.Option("--now", help="Cancel at once, without a checkpoint.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the run to stop and save.")] = 300.0,
) -> None:
    """Stop a run on Slurm and cancel its jobs.

    A run in progress first saves a checkpoint, unless --now is given.
    """
    from verst.launcher.slurm.commands import cancel_run

    raise typer.Exit(guard(cancel_run, run_dir, now, wait))


@app.command(context_settings=TAKES_OVERRIDES)
def resume(run_dir: RunPath, overrides: Overrides = None) -> None:
    """Resume a run from its last checkpoint.

    On Slurm it is submitted again. Overrides change its recipe, e.g. algorithm.steps=100. What changed is printed,
    and a change that makes no sense is refused.
    """
    raise typer.Exit(guard(_resume, run_dir, list(overrides or [])))


def _resume(run_dir: Path, overrides: list[str]) -> int:
    from verst.launcher.recipe.epochs import with_steps
    from verst.launcher.recipe.faults import UserError
    from verst.launcher.recipe.load import load_recipe
    from verst.launcher.runs.ending import read_ending
    from verst.launcher.runs.open import open_run
    from verst.launcher.runs.resume import longer, review
    from verst.launcher.slurm.jobs import is_on_slurm
    from verst.launcher.watch.status import show_status
    from verst.runtime.run.plan import Plan

    folder = open_run(run_dir)
    if folder.plan.is_file() and "trainer" not in Plan.read(folder.plan).groups:
        raise UserError(f"{folder.root} is an evaluation: it is not resumed, `verst eval` makes another one")
    ending = read_ending(folder, folder.generation)
    before = load_recipe(folder.recipe).algorithm
    review(folder, overrides)  # refuses what makes no sense, also for a run that has finished
    after = with_steps(load_recipe(folder.recipe, overrides)).algorithm
    if ending is not None and ending.ok and after.last_version <= before.last_version:
        print(f"{folder.root} has finished. To train further: `verst resume {run_dir} {longer(before)}`")
        return show_status(run_dir)
    if is_on_slurm(folder):
        from verst.launcher.slurm.commands import resume_submitted

        return resume_submitted(run_dir, overrides)
    from verst.launcher.local.commands import resume_here

    return resume_here(folder, overrides)


@app.command()
def replay(
    run_dir: RunPath,
    step: Annotated[int, typer.Option(help="The step to train again.", min=1)],
) -> None:
    """Train one step of a run again, and say whether its figures are the same.

    Needs the groups of the step (record.keep) and the checkpoint before it. Changes nothing of the run.
    """
    from verst.launcher.local.replay import replay_step

    raise typer.Exit(guard(replay_step, run_dir, step))


@app.command("rm")
def remove(
    run_dirs: RunPaths,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove them without a question.")] = False,
) -> None:
    """Remove runs that are over, with their checkpoints and exports."""
    raise typer.Exit(guard(_remove, run_dirs, yes))


def _remove(run_dirs: list[Path], yes: bool) -> int:
    from verst.launcher.runs.open import is_launched
    from verst.launcher.runs.remove import remove_runs
    from verst.launcher.slurm.jobs import is_on_slurm, states_or_fault
    from verst.runtime.run.folder import RunFolder

    def still_runs(folder: RunFolder) -> str | None:
        if not is_on_slurm(folder):
            return "is running: stop it with Ctrl-C first" if is_launched(folder) else None
        alive = [s.job for states in states_or_fault(folder).values() for s in states if not s.ended]
        jobs = ", ".join(alive[:4])
        return (
            f"has jobs that have not ended ({jobs}): `verst cancel {folder.root}` ends them"
            if alive
            else None
        )

    return remove_runs(run_dirs, yes, still_runs)
