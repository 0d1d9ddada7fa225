"""Checks a whole recipe: its sections against each other, against its files and against the machine.

`examine` runs every check. First the schema and the sections against each other, whose faults it tells at once;
then the files, the hooks and Megatron's and SGLang's own parsers, which take seconds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verst.launcher.check.checkpoints import checkpoint_faults
from verst.launcher.check.engine import engine_faults
from verst.launcher.check.evaluation import evaluation_faults
from verst.launcher.check.hooks.hooks import hook_faults
from verst.launcher.check.metrics import metrics_faults
from verst.launcher.check.model.arguments import start_parsers
from verst.launcher.check.model.model_files import model_files_faults
from verst.launcher.check.placement import placement_faults
from verst.launcher.check.places import place_faults
from verst.launcher.check.recording import recording_faults
from verst.launcher.check.routing import routing_faults
from verst.launcher.check.rows.data import data_faults
from verst.launcher.check.rows.rows import start_row_check
from verst.launcher.check.sampling import sampling_faults
from verst.launcher.check.stages import stage_faults
from verst.launcher.check.step import step_faults
from verst.launcher.check.weights import weights_faults
from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_source import (
    ModelMissingError,
    is_no_hub_id,
    model_description,
    model_folder,
)
from verst.launcher.plan.slurm_options import slurm_faults
from verst.launcher.recipe.epochs import with_steps
from verst.launcher.recipe.faults import Fault, RecipeError
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.recipe.recipe import Recipe

_REST = "files, hooks and the arguments of Megatron and SGLang are checked once these faults are mended"


def examine(path: Path, overrides: list[str] | tuple[str, ...], machine: Machine | None) -> Recipe:
    """Reads a recipe and runs every check. Raises RecipeError with all faults.

    Faults of the schema are told at once, with those of the sections against each other. The checks that take long
    (prompt files, hooks, Megatron's and SGLang's own parsers) run once there are none of them.

    `machine` is the machine that the recipe will run on; None for a Slurm cluster.
    """
    file, recipe, faults = parse_recipe(path, overrides)
    recipe = None if recipe is None else with_steps(recipe)
    if recipe is None or faults:
        known = {fault.place for fault in faults}
        more = [] if recipe is None else quick_faults(recipe, machine)
        faults += [fault for fault in more if not _follows_from(fault, known)]
        raise RecipeError(file.name, [file.line(fault) for fault in faults], _REST)
    parsers, rows = start_parsers(recipe), start_row_check(recipe)
    faults = [*check_recipe(recipe, machine), *parsers()]
    report = rows()
    known = {fault.place for fault in faults}
    faults += [fault for fault in report.faults if fault.place not in known]
    for line in report.said:  # to stderr: `verst plan --json` prints to stdout
        print(line, file=sys.stderr, flush=True)
    if faults:
        raise RecipeError(file.name, [file.line(fault) for fault in faults])
    return recipe


def check_recipe(recipe: Recipe, machine: Machine | None) -> list[Fault]:
    """All faults of a recipe that fits the schema, but for those that only the parsers find (`arguments.py`)."""
    description, faults = _model(recipe)
    return [
        *faults,
        *model_files_faults(recipe),
        *data_faults(recipe),
        *place_faults(recipe, machine),
        *hook_faults(recipe),
        *_between_sections(recipe, description, machine),
    ]


def quick_faults(recipe: Recipe, machine: Machine | None) -> list[Fault]:
    """The faults that take no time to find: it reads no file but the config.json of a local model."""
    folder = model_folder(recipe.model.path)
    description, faults = (
        _model(recipe) if folder is not None or is_no_hub_id(recipe.model.path) else (None, [])
    )
    return [*faults, *_between_sections(recipe, description, machine)]


def _between_sections(
    recipe: Recipe, description: dict[str, Any] | None, machine: Machine | None
) -> Iterator[Fault]:
    yield from stage_faults(recipe)
    yield from placement_faults(recipe, machine)
    yield from engine_faults(recipe.rollout)
    yield from slurm_faults(recipe)
    yield from metrics_faults(recipe.metrics)
    yield from weights_faults(recipe, machine)
    if recipe.algorithm.generates:
        yield from step_faults(recipe, description)
        yield from sampling_faults(recipe)
    yield from routing_faults(recipe, description)
    yield from checkpoint_faults(recipe)
    yield from evaluation_faults(recipe)
    yield from recording_faults(recipe, machine)


def _follows_from(fault: Fault, known: set[str]) -> bool:
    """Whether a fault may be the consequence of another: its key, or a key that its message names, is known to be
    faulty, or a key inside or a section around either is. Faulty keys have stand-ins, which judge nothing."""
    names = {key.rpartition(".")[2] for key in known if key}
    return any(
        fault.place == k or fault.place.startswith(k + ".") or k.startswith(fault.place + ".")
        for k in known
        if k
    ) or any(re.search(rf"\b{re.escape(name)}\b", fault.message) for name in names)


def _model(recipe: Recipe) -> tuple[dict[str, Any] | None, list[Fault]]:
    try:
        return model_description(recipe.model.path), []
    except ModelMissingError as error:
        return None, [Fault("model.path", f"is {recipe.model.path!r}: {error}")]
