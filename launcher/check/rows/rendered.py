"""Renders the first prompts of a recipe and tokenises answers to them, for `verst check-reward`.

The answers come from a program of its own (`render_program.py`), because it imports transformers.
"""

from __future__ import annotations

import sys

import msgspec

from verst.launcher.check.asking.child import ChildFailedError, ask
from verst.launcher.plan.model_source import model_folder
from verst.launcher.recipe.faults import UserError
from verst.launcher.recipe.recipe import Recipe

_DEADLINE_S = 120.0


class Rendered(msgspec.Struct, frozen=True):
    """What a reward gets besides text, label, metadata and messages."""

    prompts: list[str]  # of the first rows
    labels: list[list[int]]  # the tokens of their labels as texts
    answers: list[list[int]]


def rendered(recipe: Recipe, source: str, rows: int, answers: list[str]) -> Rendered:
    """Asks the program. Without the model here, all is empty, which is said on stderr. Raises UserError."""
    if model_folder(recipe.model.path) is None:
        print("the model is not here yet: `prompt` and `ids` of the answers are empty", file=sys.stderr)
        return Rendered([""] * rows, [[]] * rows, [[]] * len(answers))
    try:
        answer = ask(
            recipe,
            "the tokenizer",
            _DEADLINE_S,
            "verst.launcher.check.rows.render_program",
            source,
            str(rows),
            *answers,
        )
    except ChildFailedError as error:
        raise UserError(f"the prompts {error}") from error
    return msgspec.json.decode(answer, type=Rendered)
