"""Implements `verst export`: writes the model of a run as a Hugging Face folder.

A run that finishes leaves its model in `export/`; that is copied. Otherwise, and for an earlier step, the model is read
from a checkpoint, on any machine: the run may be running, stopped or failed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.runs.open import open_run
from verst.runtime.run.checkpoints import best_first, checkpoints_in, read_scores, version_of
from verst.runtime.run.folder import RunFolder


def export_run(source: Path, out: Path, step: int | None = None, best: bool = False) -> int:
    """Writes the model of the end, of the checkpoint `step`, or of the best evaluated one. Returns the exit code.

    Without `step` and `best` it is the run's own export or, if there is none yet, the newest checkpoint. Raises
    UserError if there is no such model, or the folder cannot be written.
    """
    if step is not None and best:
        raise UserError("--step and --best name two models: give one of them")
    folder = open_run(source)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: choose another")
    if step is None and not best and (folder.export / "config.json").is_file():
        shutil.copytree(folder.export, out, dirs_exist_ok=True)
        print(f"wrote {out}, a Hugging Face folder: the model at the end of the run")
        return 0
    recipe = load_recipe(folder.recipe)
    checkpoint, why = _choose(folder, recipe, step, best)
    count = _write(recipe, checkpoint, out)
    print(f"wrote {out}, a Hugging Face folder: {count} tensors of {checkpoint.name}, {why}")
    return 0


def _choose(folder: RunFolder, recipe: Recipe, step: int | None, best: bool) -> tuple[Path, str]:
    """The checkpoint to export, and why it is that one."""
    present = checkpoints_in(folder.checkpoints)
    if not present:
        raise UserError(
            f"{folder.root} has no export and no checkpoint yet: it writes one every "
            f"{recipe.checkpoint.interval} steps (checkpoint.interval)"
        )
    if best:
        best_by = recipe.checkpoint.best
        scores = read_scores(folder.metrics, best_by.set, best_by.metric)
        ranked = best_first(present, scores)
        if not ranked:
            raise UserError(
                f"{folder.root}: none of its checkpoints was evaluated ({_named(present)}); "
                "--step chooses one of them"
            )
        value = f"{best_by.set}/{best_by.metric} {scores[version_of(ranked[0])]:.3f}"
        return ranked[0], f"the best of its evaluated checkpoints, {value}"
    if step is None:
        return present[-1], "the newest checkpoint"
    found = next((path for path in present if version_of(path) == step), None)
    if found is None:
        raise UserError(f"{folder.root} has no checkpoint of step {step}, only: {_named(present)}")
    return found, "as asked for"


def _write(recipe: Recipe, checkpoint: Path, out: Path) -> int:
    from verst.runtime.trainer.checkpoint.export import export_checkpoint  # imports torch

    if out.exists():
        out.rmdir()  # it is empty; the export appears by a rename
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading")

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        try:
            scores = recipe.algorithm.trains_reward_model
            return export_checkpoint(checkpoint, recipe.model, out.absolute(), show, scores=scores)
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            gone = (
                "" if checkpoint.exists() else f"; the run has removed {checkpoint.name} meanwhile: try again"
            )
            raise UserError(f"{error}{gone}") from error


def _named(present: list[Path]) -> str:
    return ", ".join(str(version_of(path)) for path in present)
