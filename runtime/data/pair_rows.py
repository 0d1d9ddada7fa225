"""Reads and checks single pairs of answers, as far as that needs no tokenizer.

The usual forms of preference data are read: a prompt with two answers, as texts or as messages; answers that repeat the
prompt as their first messages; and two whole conversations, whose common beginning is the prompt.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from verst.runtime.algorithms.stages import PairFileConfig, ScoredPairFileConfig
from verst.runtime.data.chat import Message, chat_messages, chat_tools
from verst.runtime.data.prompts import prompt_row
from verst.runtime.data.records import DataError, Record, column
from verst.runtime.data.stage_rows import row_style

Answer = str | list[Message]


class PairRow(msgspec.Struct, kw_only=True):
    """A checked row: a prompt, and two answers to it: texts, or the messages that follow the prompt."""

    where: str  # its place: "pairs.jsonl:17"
    prompt: list[Message]
    tools: list[dict[str, Any]] | None
    chosen: Answer
    rejected: Answer
    margin: float | None = None  # by how much their scores should differ; None: the recipe names no margins


def checked_pair(record: Record, config: PairFileConfig) -> PairRow:
    """Reads one row. Raises DataError, with its place, if something is wrong with it."""
    chosen, rejected = (_answer(record, key) for key in (config.chosen_key, config.rejected_key))
    if config.prompt_key is None:
        row = _of_conversations(record, config, chosen, rejected)
    else:
        asked = prompt_row(record, row_style(config))
        row = PairRow(
            where=asked.where, prompt=asked.messages, tools=asked.tools, chosen=chosen, rejected=rejected
        )
        row.chosen = _after_the_prompt(row, row.chosen, config, config.chosen_key)
        row.rejected = _after_the_prompt(row, row.rejected, config, config.rejected_key)
    for key, answer in ((config.chosen_key, row.chosen), (config.rejected_key, row.rejected)):
        if not isinstance(answer, str):
            _check_messages(f"{row.where}: {key!r}", answer)
    if row.chosen == row.rejected:
        raise DataError(
            f"{row.where}: {config.chosen_key!r} and {config.rejected_key!r} are the same, which says nothing: leave "
            "the row out"
        )
    if isinstance(config, ScoredPairFileConfig) and config.margin_key is not None:
        row.margin = _margin(record, config.margin_key)
    return row


def _margin(record: Record, key: str) -> float:
    value, what = column(record, key), f"{record[0]}: {key!r}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{what} is {str(value)[:80]!r}, and a margin is a finite number")
    if value < 0:
        raise DataError(
            f"{what} is {value:g}: a margin below 0 prefers the other answer, so exchange the two"
        )
    return float(value)


def _answer(record: Record, key: str) -> Answer:
    value, what = column(record, key), f"{record[0]}: {key!r}"
    if isinstance(value, str):
        return value
    if isinstance(value, dict):  # some data sets write a single message without a list
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"{what} is {str(value)[:80]!r}, neither a text nor a list of messages")
    return chat_messages(value, what)


def _after_the_prompt(row: PairRow, answer: Answer, config: PairFileConfig, key: str) -> Answer:
    """The answer without the prompt, if it repeats that."""
    if isinstance(answer, str) or answer[0]["role"] == "assistant":
        return answer
    # The recipe's own system message is not in the data.
    prompt = row.prompt[1:] if config.system else row.prompt
    for said in (prompt, prompt[1:] if prompt[0]["role"] == "system" else prompt):
        if answer[: len(said)] == said and len(answer) > len(said):
            return answer[len(said) :]
    raise DataError(
        f"{row.where}: {key!r} begins with a message of the role {answer[0]['role']!r}, and not with the prompt in "
        f"{config.prompt_key!r}: it must be the assistant's messages, or begin with the prompt's. If both answers are "
        "whole conversations set prompt_key: null"
    )


def _of_conversations(record: Record, config: PairFileConfig, chosen: Answer, rejected: Answer) -> PairRow:
    where, columns = record
    for key, answer in ((config.chosen_key, chosen), (config.rejected_key, rejected)):
        if isinstance(answer, str):
            raise DataError(
                f"{where}: {key!r} is a text; without prompt_key a list of messages is needed, of which the prompt is "
                "the common beginning"
            )
    assert isinstance(chosen, list)
    assert isinstance(rejected, list)
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    if not common:
        raise DataError(
            f"{where}: {config.chosen_key!r} and {config.rejected_key!r} differ in their first message, so they have "
            "no prompt in common"
        )
    tools, named = None, config.tools_key
    if named is not None and (named in columns or named.split(".")[0] in columns):
        tools = chat_tools(column(record, named), f"{where}: {named!r}")
    system = [{"role": "system", "content": config.system}] if config.system else []
    return PairRow(
        where=where,
        prompt=[*system, *chosen[:common]],
        tools=tools,
        chosen=chosen[common:],
        rejected=rejected[common:],
    )


def _check_messages(what: str, answer: list[Message]) -> None:
    if not answer:
        raise DataError(f"{what} ends where the other answer goes on, so it has no answer of its own")
    for message in (answer[0], answer[-1]):
        if message["role"] != "assistant":
            where = "begins" if message is answer[0] else "ends"
            raise DataError(
                f"{what}: after the prompt it {where} with a message of the role {message['role']!r}; an answer begins "
                "and ends with the assistant's"
            )
