"""The program that renders prompts for `verst check-reward`:
`python -m verst.launcher.check.rows.render_program SOURCE ROWS ANSWER… < RECIPE`.

It prints a `Rendered` as JSON in the last line.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import msgspec
import yaml

from verst.launcher.check.rows.rendered import Rendered
from verst.launcher.recipe.recipe import Recipe
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.prompts import checked_row, tokenised
from verst.runtime.data.records import read_records
from verst.runtime.data.tokenizer import load_tokenizer


def main() -> None:
    """Renders what the arguments say."""
    recipe = Recipe.model_validate(yaml.safe_load(sys.stdin))
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it takes longer than all the rest
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
