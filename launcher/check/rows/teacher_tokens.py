"""Checks that the teacher has the policy's tokens: it scores them by their ids."""

from __future__ import annotations

from typing import Any

from verst.launcher.check.rows.tokenizers import tokenizer_or_fault
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.faults import Fault
from verst.launcher.recipe.recipe import Recipe

PLACE = "algorithm.teacher.path"


def teacher_token_faults(recipe: Recipe, tokenizer: Any) -> list[Fault]:
    """A fault if a token of the policy's `tokenizer` has another id in the teacher's, or none."""
    teacher = recipe.algorithm.teacher
    folder = None if teacher is None else model_folder(teacher.path)
    if teacher is None or folder is None:  # `model_files.py` tells of a folder that is not there
        return []
    loaded, faults = tokenizer_or_fault(PLACE, teacher.path, folder)
    if faults:
        return faults
    theirs = loaded.get_vocab()
    differing = [(token, id) for token, id in tokenizer.get_vocab().items() if theirs.get(token) != id]
    if not differing:
        return []
    token, id = min(differing, key=lambda pair: pair[1])
    there = f"the id {theirs[token]}" if token in theirs else "none"
    return [
        Fault(
            PLACE,
            f"is {teacher.path!r}: it must have the tokenizer of model.path, and {len(differing)} tokens differ, such "
            f"as {token!r}, which has the id {id} there and {there} here",
        )
    ]
