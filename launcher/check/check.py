"""Checks a whole recipe: its sections against each other, against its files and against the machine.

`examine` runs every check (the schema, the cross-checks, the hooks, Megatron's and SGLang's own parsers) and
reports all faults in one list.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verst.launcher.check.arguments import argument_faults
from verst.launcher.check.data import data_faults
from verst.launcher.check.engine import engine_faults
from verst.launcher.check.hooks import hook_fault
from verst.launcher.check.metrics import metrics_faults
from verst.launcher.check.model_files import model_files_faults
from verst.launcher.check.placement import placement_faults
from verst.launcher.check.routing import routing_faults
from verst.launcher.check.step import step_faults
from verst.launcher.check.weights import weights_faults
from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_source import ModelMissingError, model_description
from verst.launcher.plan.slurm_options import slurm_faults
from verst.launcher.recipe.faults import Fault, RecipeError
from verst.launcher.recipe.load import parse_recipe
from verst.launcher.recipe.recipe import Recipe, hook_places


def examine(path: Path, overrides: list[str] | tuple[str, ...], machine: Machine | None) -> Recipe:
    """Reads a recipe and runs every check. Raises RecipeError with all faults.

    `machine` is the machine that the recipe will run on; None for a Slurm cluster.
    """
    # To stderr: `verst plan --json` prints to stdout. The parsers below take many seconds.
    print(f"checking {path}, with Megatron's and SGLang's own parsers ...", file=sys.stderr, flush=True)
    file, recipe, faults = parse_recipe(path, overrides)
    if recipe is not None:
        known = {fault.place for fault in faults}
        faults += [fault for fault in check_recipe(recipe, machine) if not _follows_from(fault.place, known)]
    if faults or recipe is None:
        raise RecipeError(file.name, [file.line(fault) for fault in faults])
    return recipe


def check_recipe(recipe: Recipe, machine: Machine | None, parsers: bool = True) -> list[Fault]:
    """All faults of a recipe that fits the schema.

    `parsers`: also run the checks that import torch (Megatron's and SGLang's parsers), which take about 20 s.
    """
    description, faults = _model(recipe)
    faults += [
        *model_files_faults(recipe),
        *data_faults(recipe),
        *_hooks(recipe),
        *placement_faults(recipe, machine),
        *engine_faults(recipe.rollout),
        *slurm_faults(recipe),
        *metrics_faults(recipe.metrics),
        *weights_faults(recipe, description, machine),
        *step_faults(recipe, description),
        *routing_faults(recipe, description),
    ]
    return faults + argument_faults(recipe) if parsers else faults


def _follows_from(place: str, known: set[str]) -> bool:
    """Whether the key itself, a key inside it or a section around it is already known to be faulty."""
    return any(place == k or place.startswith(k + ".") or k.startswith(place + ".") for k in known if k)


def _model(recipe: Recipe) -> tuple[dict[str, Any] | None, list[Fault]]:
    try:
        return model_description(recipe.model.path), []
    except ModelMissingError as error:
        return None, [Fault("model.path", f"is {recipe.model.path!r}: {error}")]


def _hooks(recipe: Recipe) -> Iterator[Fault]:
    for place, (dotted, arguments) in hook_places(recipe).items():
        fault = hook_fault(dotted, arguments)
        if fault is not None:
            yield Fault(place, fault)
