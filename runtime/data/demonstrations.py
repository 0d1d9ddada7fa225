"""Reads the rows of supervised steps: a prompt with the response to imitate, or a whole conversation.

Of a conversation the turns of the assistant are trained on, all of them or the last (`turns.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import batched
from typing import Any, Protocol

import msgspec
import numpy as np

from verst.runtime.algorithms.stages import RowFileConfig, SftFileConfig
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.prompts import tokenised
from verst.runtime.data.records import DataError, Record, read_records
from verst.runtime.data.stage_rows import checked_demonstration, longest_row, row_style
from verst.runtime.data.turns import joined_tokens, parts_of

_ROWS_AT_ONCE = 256


class Demonstration(msgspec.Struct, kw_only=True):
    """The tokens of a row: what comes before all that is trained on, and the rest."""

    where: str  # the row's place: "demonstrations.jsonl:17"
    prompt_ids: np.ndarray  # int32 [P], P >= 1
    response_ids: np.ndarray  # int32 [R], R >= 1; ends with what ends the last turn
    loss_mask: np.ndarray  # uint8 [R], 1 where the token is trained on

    @property
    def length(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


class _Row(Protocol):
    @property
    def length(self) -> int: ...


@dataclass(frozen=True)
class UsableRows[Row: _Row]:
    """The usable rows of a stage's file, in the file's order."""

    rows: list[Row]
    too_long: int  # the number of rows that are left out because they are too long

    def __len__(self) -> int:
        return len(self.rows)


def usable_rows[Row: _Row](config: RowFileConfig, rows: Iterator[Row], most: int) -> UsableRows[Row]:
    """Leaves out rows of more than `config.max_tokens` or `most` tokens. Raises DataError when no row is left."""
    longest = longest_row(config, most)
    kept, too_long = [], 0
    for row in rows:
        if row.length <= longest:
            kept.append(row)
        else:
            too_long += 1
    if not kept:
        longer = f"; {too_long} are longer than {longest} tokens" if too_long else ""
        raise DataError(f"{config.path}: no usable row{longer}")
    return UsableRows(kept, too_long)


def load_demonstrations(config: SftFileConfig, tokenizer: Any, most: int) -> UsableRows[Demonstration]:
    """Reads and tokenises `config.path`. Leaves out rows of more than `config.max_tokens` or `most` tokens.

    Raises DataError for a faulty row, and when no row is left.
    """
    return usable_rows(config, read_demonstrations(config, tokenizer), most)


def read_demonstrations(config: SftFileConfig, tokenizer: Any) -> Iterator[Demonstration]:
    """Yields the demonstrations one by one, too long ones as well. Raises DataError at the first faulty row."""
    template = ChatTemplate(row_style(config), tokenizer)
    records = read_records(config.path)
    read = _answered_prompts if config.messages_key is None else _conversations
    for some in batched(records, _ROWS_AT_ONCE):
        yield from read(some, config, template, tokenizer)


def _answered_prompts(
    records: tuple[Record, ...], config: SftFileConfig, template: ChatTemplate, tokenizer: Any
) -> Iterator[Demonstration]:
    checked = [checked_demonstration(record, config) for record in records]
    answers = tokenizer([response for _, response in checked], add_special_tokens=False)["input_ids"]
    for (row, _, ids), answer in zip(tokenised([row for row, _ in checked], template), answers, strict=True):
        if not ids:
            raise DataError(f"{row.where}: the prompt is empty")
        response = answer + template.turn_end(row.messages, row.where)
        yield as_demonstration(row.where, ids, response, [1] * len(response))


def _conversations(
    records: tuple[Record, ...], config: SftFileConfig, template: ChatTemplate, tokenizer: Any
) -> Iterator[Demonstration]:
    rows = [checked_demonstration(record, config)[0] for record in records]
    cut = [parts_of(row.messages, row.tools, template, row.where, config.train_on) for row in rows]
    prompts = template.tokens([parts[0].text for parts in cut])
    rest = [part.text for parts in cut for part in parts[1:]]
    tokens = iter(tokenizer(rest, add_special_tokens=False)["input_ids"])
    for row, parts, prompt in zip(rows, cut, prompts, strict=True):
        found = joined_tokens(parts, [prompt, *(next(tokens) for _ in parts[1:])], template)
        if 1 not in found.mask:
            raise DataError(f"{row.where}: the assistant's turns are empty, so there is nothing to train on")
        first = found.mask.index(1)
        if first == 0:
            raise DataError(f"{row.where}: nothing comes before the assistant's first turn")
        last = len(found.mask) - found.mask[::-1].index(1)
        yield as_demonstration(row.where, found.ids[:first], found.ids[first:last], found.mask[first:last])


def as_demonstration(where: str, prompt: list[int], response: list[int], mask: list[int]) -> Demonstration:
    """The tokens of a row as arrays."""
    return Demonstration(
        where=where,
        prompt_ids=np.array(prompt, dtype=np.int32),
        response_ids=np.array(response, dtype=np.int32),
        loss_mask=np.array(mask, dtype=np.uint8),
    )
