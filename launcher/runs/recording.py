"""Notes for a run that trains on a recording whether it makes the same weights as the recorded run."""

from __future__ import annotations

import re
from pathlib import Path

from verst.launcher.recipe.load import load_recipe
from verst.launcher.recipe.recipe import Recipe
from verst.launcher.runs.model_record import model_faults, recorded_model
from verst.launcher.runs.prepare import with_absolute_paths
from verst.launcher.runs.resume import compare, is_innocent
from verst.runtime.controller.recorded import write_note
from verst.runtime.run.folder import RunFolder

# Further keys that the weights do not depend on where the groups are those of a recording.
_OF_GENERATION = (
    "rollout", "data", "record", "algorithm.mode", "algorithm.max_staleness", "algorithm.prompts_per_step",
    "algorithm.samples_per_prompt",
)  # fmt: skip
# Of these, keys that count when a step is trained: `loss_average: constant` divides by the longest answer.
_OF_TRAINING = re.compile(
    r"rollout\.sampling\.max_new_tokens|data\.train\.sources\..*\.(loss_weight|max_new_tokens)"
)
# At a resume other rules hold for stages; here their steps have decided the weights, and only their `eval` has not.
_OF_STAGES = re.compile(r"algorithm\.stages\.(?!\d+\.eval\b)")


def note_recording(folder: RunFolder, recipe: Recipe) -> None:
    """Writes the note into the folder of a run that is about to start; nothing without `record.source`."""
    if recipe.record.source is not None:
        ours = with_absolute_paths(recipe)  # as in the recipe of the recorded run
        write_note(folder, makes_the_same_weights(ours, RunFolder(Path(recipe.record.source).expanduser())))


def makes_the_same_weights(recipe: Recipe, recorded: RunFolder) -> bool:
    """Whether a run of `recipe` on the groups of the run `recorded` makes the weights of that one again.

    Each life of that run must have had the same settings.
    """
    lives = sorted(recorded.recipes.glob("life-*.yaml")) or [recorded.recipe]
    began = recorded_model(recorded)
    same_model = began is not None and not model_faults(began, Path(recipe.model.path))
    return all(_same(recipe, load_recipe(life), same_model) for life in lives)


def _same(recipe: Recipe, recorded: Recipe, same_model: bool) -> bool:
    if recipe.model.path == recorded.model.path and not same_model:
        return False  # another model in that place
    for change in compare(recorded, recipe):
        if change.key == "model.path" and same_model:
            continue
        if _OF_TRAINING.fullmatch(change.key) or _OF_STAGES.match(change.key):
            return False
        if not (any(change.concerns(key) for key in _OF_GENERATION) or is_innocent(change, recipe)):
            return False
    return True
