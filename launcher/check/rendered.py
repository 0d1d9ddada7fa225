"""Renders the first prompts of a recipe and tokenises answers to them, for `verst check-reward`.

`python -m verst.launcher.check.rendered SOURCE ROWS ANSWER…`: a program of its own, because it hides torch, whose
import takes longer than all the rest. The recipe comes as YAML on stdin; the last line of stdout is a `Rendered` as
JSON.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import msgspec
import yaml

from verst.launcher.check.child import ChildFailedError, ask
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
            recipe, "the tokenizer", _DEADLINE_S, "verst.launcher.check.rendered", source, str(rows), *answers
        )
    except ChildFailedError as error:
        raise UserError(f"the prompts {error}") from error
    return msgspec.json.decode(answer, type=Rendered)


def main() -> None:
    """Renders what the arguments say."""
    from verst.runtime.data.chat_template import ChatTemplate
    from verst.runtime.data.prompts import checked_row, tokenised
    from verst.runtime.data.records import read_records
    from verst.runtime.data.tokenizer import load_tokenizer

    recipe = Recipe.model_validate(yaml.safe_load(sys.stdin))
    sys.modules["torch"] = None  # type: ignore[assignment]
    tokenizer = load_tokenizer(Path(recipe.model.path).expanduser())
    config = recipe.data.train.by_name()[sys.argv[1]]
    records = islice(read_records(str(Path(config.path).expanduser())), int(sys.argv[2]))
    rows = [checked_row(record, config) for record in records]
    prompts = [text for _, text, _ in tokenised(rows, ChatTemplate(config, tokenizer))]
    labels, answers = (
        [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        for texts in ([str(row.label) for row in rows], sys.argv[3:])
    )
    print("\n" + msgspec.json.encode(Rendered(prompts, labels, answers)).decode())


if __name__ == "__main__":
    main()
