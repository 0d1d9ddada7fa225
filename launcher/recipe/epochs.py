"""Counts the epochs of stages in steps, from the number of rows of their files."""

from __future__ import annotations

import math

from verst.launcher.recipe.recipe import Recipe
from verst.runtime.algorithms.stages import RowStage
from verst.runtime.data.files import path_in_full
from verst.runtime.data.records import count_rows


def with_steps(recipe: Recipe) -> Recipe:
    """The recipe with steps in place of epochs: as many as it takes to pass over all rows of the file so often.

    Where they cannot be counted the epochs stay, which `check/stages.py` refuses.
    """
    recipe = recipe.model_copy(deep=True)
    for stage in recipe.algorithm.stages:
        if isinstance(stage, RowStage) and stage.epochs is not None:
            rows = count_rows(path_in_full(stage.data.path))
            stage.steps = max(1, math.ceil(stage.epochs * (rows or 1) / stage.batch_size - 1e-9))
            stage.epochs = None if rows else stage.epochs
    return recipe
