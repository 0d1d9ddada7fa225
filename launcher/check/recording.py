"""Checks the recording that a run trains on: it is whole, of this model, and has the steps that the run needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from verst.launcher.plan.machine import Machine
from verst.launcher.plan.model_files import config_digest
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.faults import Fault, RecipeError
from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.messages.sample import Group
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.recording import first_group, missing_steps, recorded_steps

_PLACE = "record.source"


def recording_faults(recipe: Recipe, machine: Machine | None) -> Iterator[Fault]:
    """The faults of `record`. Reads a single group of the recording; the run itself reads them all."""
    if recipe.data.eval_sets and not recipe.evaluates:
        why = "has no effect: a run with record.source or record.generate_only evaluates nothing"
        if recipe.checkpoint.keep_best:
            yield Fault("checkpoint.keep_best", why)
        if recipe.algorithm.early_stop is not None:
            yield Fault("algorithm.early_stop", why)
    if recipe.record.source is None:
        return
    source = RunFolder(Path(recipe.record.source).expanduser())
    where = f"is {recipe.record.source!r}"
    if not source.recipe.is_file():
        yield Fault(_PLACE, f"{where}: that is no run folder: it has no recipe.yaml")
        return
    if machine is None:
        yield Fault(
            _PLACE, f"{where}: a run that trains on a recording runs on this machine alone, with `verst run`"
        )
    try:
        recorded = load_recipe(source.recipe)
        warm, theirs = recipe.algorithm.offline_steps, recorded.algorithm.offline_steps
    except ValueError as error:  # epochs that are not yet counted in steps
        yield Fault(_PLACE, f"{where}: {error}; give steps to the stages of a run that trains on a recording")
        return
    except RecipeError as error:
        yield Fault(_PLACE, f"{where}: its recipe does not fit this version of Verst: {error}")
        return
    if warm != theirs:
        yield Fault(
            _PLACE,
            f"{where}: its first recorded step came after {theirs} steps of other stages, and here there are {warm} "
            "(algorithm.stages): the tokens' weight versions would have another meaning",
        )
        return
    unknown = recorded.data.train.by_name().keys() - recipe.data.train.by_name().keys()
    if unknown:
        told = ", ".join(sorted(unknown)) or "a single file"
        yield Fault(
            _PLACE,
            f"{where}: its groups are of other sources ({told}) than data.train has here, which say how much their "
            "tokens count (loss_weight)",
        )
        return
    last = recipe.record.last_step or warm + recipe.algorithm.steps
    first = last if recipe.record.last_step else warm + 1
    if problem := missing_steps(recorded_steps(source.samples), first, last):
        yield Fault(_PLACE, f"{where}: {problem}")
        return
    yield from _of_model(recipe, source, where)
    group = first_group(source.samples)
    if group is None:
        yield Fault(_PLACE, f"{where}: its journals, samples/shard-*/, hold no group")
    else:
        yield from _of_group(recipe, group, where)


def _of_model(recipe: Recipe, source: RunFolder, where: str) -> Iterator[Fault]:
    note, model = source.root / "model.json", model_folder(recipe.model.path)
    if not note.is_file() or model is None:
        return
    began = json.loads(note.read_text())
    if began["config"] != config_digest(model):
        yield Fault(
            _PLACE, f"{where}: it began with another model, {began['path']}: their config.json differ"
        )


def _of_group(recipe: Recipe, group: Group, where: str) -> Iterator[Fault]:
    if recipe.algorithm.routing_replay == "rollout" and group.samples[0].routing is None:
        yield Fault(
            _PLACE,
            f"{where}: its samples have no routing, because it ran without algorithm.routing_replay; set that to "
            "trainer or off",
        )
