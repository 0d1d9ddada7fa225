"""Prepares a run folder for launch: writes the recipe, the plan and the keys."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from verst.launcher.plan.machine import Target
from verst.launcher.plan.model_source import fetch_model
from verst.launcher.plan.plan import make_plan
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.recipe import Recipe, data_files, reference_sections
from verst.launcher.runs.model_record import write_model_record
from verst.runtime.data.files import path_in_full
from verst.runtime.run.checkpoints import latest
from verst.runtime.run.folder import RunFolder, write_fault
from verst.runtime.run.plan import Plan


class RunExistsError(UserError):
    """The run folder already exists. The message says how to resume that run, or how to choose another name."""


def prepare_run(recipe: Recipe, target: Target) -> tuple[RunFolder, Plan]:
    """Makes the folder of a new run.

    Raises RunExistsError when it exists, and ModelMissingError when the model cannot be downloaded from the
    hub.
    """
    folder = RunFolder(recipe.run_folder)
    refuse_existing(folder)
    recipe = with_absolute_paths(
        recipe
    )  # may download the model and fail, so it comes before the folder is made
    folder.create()
    from verst.runtime.actors.security import create_keys  # imports pyzmq, which `verst --help` does not need

    create_keys(folder)
    write_model_record(folder, Path(recipe.model.path))
    return folder, write_plan(folder, recipe, target)


def refuse_existing(folder: RunFolder) -> None:
    """Raises RunExistsError when the run folder exists, and UserError when it cannot be made."""
    try:
        folder.root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder.root}: {error.strerror}") from error
    if fault := write_fault(folder.root.parent):
        raise UserError(f"cannot make the run folder {folder.root}: {fault}")
    if folder.root.exists() and any(folder.root.iterdir()):
        raise RunExistsError(
            f"{folder.root} already exists. Resume that run: `verst resume {_short(folder.root)}`; "
            f"or start another with its own name: `verst run … --name {_free_name(folder.root)}`"
        )


def refuse_unwritable(folder: RunFolder) -> None:
    """Raises UserError when the run folder cannot be written."""
    if fault := folder.write_fault():
        raise UserError(f"cannot resume {folder.root}: {fault}")


def prepare_resume(folder: RunFolder, recipe: Recipe, target: Target) -> Plan:
    """Writes the files for a new life of an existing run, from its own recipe, perhaps with overrides."""
    recipe = with_absolute_paths(recipe)
    if latest(folder.checkpoints) is None:  # the run begins again, perhaps with another model
        write_model_record(folder, Path(recipe.model.path))
    return write_plan(folder, recipe, target)


def write_plan(folder: RunFolder, recipe: Recipe, target: Target) -> Plan:
    """Writes the resolved recipe and plan.json, and keeps the recipe under the number of the life that begins with it.

    A life that begins by itself has the recipe of the one before.
    """
    life = folder.life
    folder.recipes.mkdir(mode=0o700, exist_ok=True)
    recipe.write(folder.recipes / f"life-{0 if life is None else life.generation + 1}.yaml")
    recipe.write(folder.recipe)
    plan = make_plan(recipe, folder.root, target, python_path())
    plan.write(folder.plan)
    return plan


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe for the run folder: all paths absolute, so that it means the same in any directory.

    Downloads the model if it is a hub id. Raises ModelMissingError when that fails.
    """
    recipe = recipe.model_copy(deep=True)
    recipe.model.path = str(fetch_model(recipe.model.path))
    rollout, weights = recipe.rollout, recipe.weights
    rollout.model_path = _absolute(rollout.model_path)
    for reference in reference_sections(recipe).values():
        reference.path = _absolute(reference.path)
    if recipe.algorithm.teacher is not None:
        recipe.algorithm.teacher.path = str(_absolute(recipe.algorithm.teacher.path))
    if recipe.algorithm.critic is not None:
        recipe.algorithm.critic.path = _absolute(recipe.algorithm.critic.path)
    weights.folder, weights.local_folder = _absolute(weights.folder), _absolute(weights.local_folder)
    recipe.record.source = _absolute(recipe.record.source)
    recipe.runs_dir = str(Path(recipe.runs_dir).expanduser().absolute())
    if recipe.metrics.prometheus is not None and recipe.metrics.prometheus.textfile:
        textfile = Path(recipe.metrics.prometheus.textfile).expanduser().absolute()
        recipe.metrics.prometheus.textfile = str(textfile)
    for section in data_files(recipe):
        section.path = path_in_full(section.path)
    data = recipe.data
    for prompts in (data.train, *data.train.sources.values(), *data.eval_sets.values()):
        if prompts.chat_template_file is not None:
            prompts.chat_template_file = _absolute(prompts.chat_template_file)
    for span in recipe.algorithm.spans:
        if span.stage.data.chat_template_file is not None:
            span.stage.data.chat_template_file = _absolute(span.stage.data.chat_template_file)
    return recipe


def _absolute(path: str | None) -> str | None:
    return path and str(Path(path).expanduser().absolute())


def python_path() -> str:
    """The PYTHONPATH of the run's processes. It includes the current directory, so that hooks there can be imported."""
    here, existing = os.getcwd(), os.environ.get("PYTHONPATH", "")
    return existing if here in existing.split(os.pathsep) else os.pathsep.join(filter(None, [here, existing]))


def recall_python_path(folder: RunFolder) -> None:
    """Adds the PYTHONPATH of the run's last life to this process's.

    So its hooks are found even when the run is resumed from another directory.
    """
    nodes = [node for members in Plan.read(folder.plan).groups.values() for node in members]
    known = {process.env.get("PYTHONPATH", "") for node in nodes for process in node.processes}
    for place in filter(None, os.pathsep.join(known).split(os.pathsep)):
        if place not in python_path().split(os.pathsep):
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), place]))
            sys.path.append(place)


def _free_name(root: Path) -> str:
    number = 2
    while (root.parent / f"{root.name}-{number}").exists():
        number += 1
    return f"{root.name}-{number}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
