"""Implements `verst eval`: answers the held-out prompts with a model folder or a checkpoint, without a trainer."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from verst.launcher.check.engine import engine_faults
from verst.launcher.check.hooks.hooks import hook_faults
from verst.launcher.check.rows.data import data_faults
from verst.launcher.local.launch import launch
from verst.launcher.models.export import export_run
from verst.launcher.plan.evaluation import evaluation_plan
from verst.launcher.plan.machine import this_machine
from verst.launcher.plan.parallelism import engine_ranks
from verst.launcher.recipe.faults import Fault, RecipeError, UserError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.runs.open import open_run
from verst.launcher.runs.prepare import python_path, recall_python_path, with_absolute_paths
from verst.launcher.watch.view import PlainView
from verst.runtime.actors.security import create_keys
from verst.runtime.algorithms.stages import PolicyStage
from verst.runtime.run.checkpoints import checkpoints_in
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.config import RecordConfig

_OF_ENGINES = ("rollout.", "data.eval")  # what an evaluation uses of a recipe


def evaluate(
    source: Path,
    overrides: list[str],
    recipe_path: Path | None,
    data: Path | None,
    step: int | None,
    best: bool,
    as_json: bool,
) -> int:
    """Evaluates a run's model or a Hugging Face folder, and prints a table. Returns the exit code.

    Raises UserError if there is no such model or recipe, and RecipeError for what the engines could not do.
    """
    if step is not None and best:
        raise UserError("--step and --best name two models: give one of them")
    run = None if (source / "config.json").is_file() else open_run(source)
    if run is None and (step is not None or best):
        raise UserError(f"{source} is a model folder: --step and --best are for a run")
    if run is None and recipe_path is None:
        raise UserError(
            f"{source} is a model folder: name a recipe for its engines and data, --recipe RECIPE"
        )
    file = recipe_path or (run.recipe if run is not None else source)
    if run is not None:
        recall_python_path(run)
    # First, so that overrides such as data.eval.prompt_key=question are about it.
    changes = [*([] if data is None else [f"data.eval={{path: {json.dumps(str(data))}}}"]), *overrides]
    recipe = load_recipe(file, changes)
    if not recipe.algorithm.generates:
        raise UserError(
            f"{file} generates nothing, so it says nothing of engines and rewards: name a recipe that does, "
            "--recipe RECIPE"
        )
    if not recipe.data.eval_sets:
        raise UserError(f"{file} has no data.eval: name held-out prompts with --data FILE")
    _refuse(file, recipe)
    name = _name(run, source, step, best)
    parent = run.root / "evaluations" if run is not None else recipe.run_folder.parent
    folder = RunFolder(free(parent / name))
    return _evaluate(recipe, folder, run, source, step, best, as_json)


def _evaluate(
    recipe: Recipe,
    folder: RunFolder,
    run: RunFolder | None,
    source: Path,
    step: int | None,
    best: bool,
    as_json: bool,
) -> int:
    console = Console(stderr=as_json)
    folder.create()
    model, exported = source, folder.root / "model"
    try:
        if run is not None:
            model = exported
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    export_run(run.root, exported, step, best)
            except UserError:
                shutil.rmtree(folder.root)  # nothing was evaluated
                raise
        if recipe.rollout.model_path is not None:
            console.print(
                f"the engines serve {model}, not the format of rollout.model_path ({recipe.rollout.model_path})"
            )
        create_keys(folder)
        machine = this_machine()
        recipe = with_absolute_paths(_for_engines(recipe, folder, model))
        recipe.write(folder.recipe)
        plan = evaluation_plan(recipe, folder.root, machine, python_path())
        plan.write(folder.plan)
        folder.start_generation()
        with PlainView(folder, console) as view:
            ending = launch(folder, plan, view.update)
    finally:
        shutil.rmtree(exported, ignore_errors=True)
    if not ending.ok:
        raise UserError("\n".join([f"the evaluation failed: {ending.reason}", *ending.lines]))
    result = folder.root / "eval.json"
    if as_json:
        print(result.read_text())
    else:
        console.print(table(json.loads(result.read_text())["sets"]))
        console.print(f"written to {result}; answers: {folder.shown}", highlight=False, soft_wrap=True)
    return 0


def table(sets: dict[str, dict[str, Any]]) -> Table:
    """The figures of each set, with the half widths of their 95 % intervals."""
    made = Table("set", "figure", "value", "95 % interval", box=None, padding=(0, 2, 0, 0))
    for name, figures in sets.items():
        for key, value in figures.items():
            if not key.endswith("_ci"):
                half = figures.get(f"{key}_ci")
                number = f"{value:.4g}" if isinstance(value, float) else str(value)
                made.add_row(name, key, number, "" if half is None else f"± {half:.4g}")
    return made


def _refuse(file: Path, recipe: Recipe) -> None:
    found: Iterable[Fault] = [*data_faults(recipe), *hook_faults(recipe), *engine_faults(recipe.rollout)]
    faults = [fault for fault in found if fault.place.startswith(_OF_ENGINES)]
    gpus, needed = this_machine().gpus, recipe.rollout.engines * engine_ranks(recipe.rollout.sglang)
    if gpus and needed > len(gpus):
        faults.append(
            Fault(
                "rollout.engines",
                f"is {recipe.rollout.engines}, whose engines need {needed} GPUs, but this machine has {len(gpus)}: "
                "make them fewer, rollout.engines=1",
            )
        )
    if faults:
        raise RecipeError(str(file), [f"{file}: {fault.place}: {fault.message}" for fault in faults])


def _for_engines(recipe: Recipe, folder: RunFolder, model: Path) -> Recipe:
    """The recipe of the evaluation: its engines serve `model`, on GPUs of their own. Nothing is trained or recorded."""
    recipe = recipe.model_copy(deep=True)
    recipe.name, recipe.runs_dir = folder.root.name, str(folder.root.parent)
    recipe.model.path, recipe.rollout.model_path = str(model), None
    recipe.placement.layout = "disaggregated"
    recipe.record = RecordConfig()  # a run on a recording starts no engine
    recipe.algorithm.stages = [PolicyStage(kind="policy")]  # the files of others need not be here
    return recipe


def _name(run: RunFolder | None, source: Path, step: int | None, best: bool) -> str:
    if run is None:
        return f"eval-{source.resolve().name}"
    if step is not None:
        return f"step-{step:06d}"
    if best:
        return "best"
    if (run.export / "config.json").is_file():
        return "export"
    found = checkpoints_in(run.checkpoints)
    return found[-1].name if found else "model"


def free(path: Path) -> Path:
    """The path, or it with a number behind it if there is something already."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
