"""Reads pairs of answers to the same prompt, of which one is preferred, and tokenises them.

An answer that is a text is tokenised as it stands, and gets what ends a turn. One of messages is rendered with its
prompt by the chat template, and the turns of the assistant after the prompt are trained on (`turns.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import batched
from typing import Any

import msgspec

from verst.runtime.algorithms.stages import PairFileConfig
from verst.runtime.data.chat import Message
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.demonstrations import Demonstration, UsableRows, as_demonstration, usable_rows
from verst.runtime.data.pair_rows import PairRow, checked_pair
from verst.runtime.data.records import DataError, read_records
from verst.runtime.data.stage_rows import row_style
from verst.runtime.data.turns import joined_tokens, parts_of

_ROWS_AT_ONCE = 256


class Pair(msgspec.Struct, kw_only=True):
    """The tokens of two answers to one prompt."""

    chosen: Demonstration
    rejected: Demonstration
    margin: float | None = None  # by how much their scores should differ; None: the recipe names no margins

    @property
    def length(self) -> int:
        """Tokens of both answers, each with the prompt."""
        return self.chosen.length + self.rejected.length


def load_pairs(config: PairFileConfig, tokenizer: Any, most: int) -> UsableRows[Pair]:
    """Reads and tokenises `config.path`. Leaves out pairs of more than `config.max_tokens` or `most` tokens: both
    answers go into one micro-batch.

    Raises DataError for a faulty row, and when no row is left.
    """
    return usable_rows(config, read_pairs(config, tokenizer), most)


def read_pairs(config: PairFileConfig, tokenizer: Any) -> Iterator[Pair]:
    """Yields the pairs one by one, too long ones as well. Raises DataError at the first faulty row."""
    template = ChatTemplate(row_style(config), tokenizer)
    for some in batched(read_records(config.path), _ROWS_AT_ONCE):
        rows = [checked_pair(record, config) for record in some]
        texts = [answer for row in rows for answer in (row.chosen, row.rejected) if isinstance(answer, str)]
        tokens = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        prompts = template.tokens([template.render(row.prompt, row.where, row.tools) for row in rows])
        for row, prompt in zip(rows, prompts, strict=True):
            if not prompt:
                raise DataError(f"{row.where}: the prompt is empty")
            chosen, rejected = (
                _text(row, prompt, next(tokens), template)
                if isinstance(answer, str)
                else _messages(row, answer, template, tokenizer)
                for answer in (row.chosen, row.rejected)
            )
            yield _checked(Pair(chosen=chosen, rejected=rejected, margin=row.margin), config)


def _text(row: PairRow, prompt: list[int], answer: list[int], template: ChatTemplate) -> Demonstration:
    response = answer + template.turn_end(row.prompt, row.where)
    return as_demonstration(row.where, prompt, response, [1] * len(response))


def _messages(row: PairRow, answer: list[Message], template: ChatTemplate, tokenizer: Any) -> Demonstration:
    whole = [*row.prompt, *answer]
    parts = parts_of(whole, row.tools, template, row.where, "all", first=len(row.prompt))
    (prompt,) = template.tokens([parts[0].text])
    rest = tokenizer([part.text for part in parts[1:]], add_special_tokens=False)["input_ids"]
    found = joined_tokens(parts, [prompt, *rest], template)
    if 1 not in found.mask:
        raise DataError(f"{row.where}: the assistant's turns are empty, so there is nothing to train on")
    first = found.mask.index(1)
    last = len(found.mask) - found.mask[::-1].index(1)
    return as_demonstration(row.where, found.ids[:first], found.ids[first:last], found.mask[first:last])


def _checked(pair: Pair, config: PairFileConfig) -> Pair:
    chosen, rejected = pair.chosen, pair.rejected
    if chosen.prompt_ids.tolist() != rejected.prompt_ids.tolist():
        raise DataError(
            f"{chosen.where}: the chat template writes what comes before the answer otherwise for "
            f"{config.chosen_key!r} than for {config.rejected_key!r}, so they are not answers to the same prompt"
        )
    if chosen.response_ids.tolist() == rejected.response_ids.tolist():
        raise DataError(
            f"{chosen.where}: {config.chosen_key!r} and {config.rejected_key!r} are the same, token by token, which "
            "says nothing: leave the row out"
        )
    return pair
