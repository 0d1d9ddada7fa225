"""Reads prompt files: renders each row with the tokenizer's chat template, and tokenises it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import batched
from typing import Any

import msgspec

from verst.runtime.data.chat import Message, chat_messages, chat_tools
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.records import DataError, Record, column, read_records
from verst.runtime.messages.jobs import Prompt

_ROWS_AT_ONCE = 256  # tokenised in one call


class Row(msgspec.Struct, kw_only=True):
    """A checked row of a prompt file."""

    where: str  # its place: "train.jsonl:17"
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    continued: bool  # the model continues the last message
    label: Any = None
    metadata: dict[str, Any] = {}


class Prompts(msgspec.Struct, kw_only=True):
    """The usable rows of a prompt file, in the file's order."""

    rows: list[Prompt]
    too_long: int  # the number of rows longer than max_prompt_tokens, which are left out

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Prompt:
        return self.rows[row]


def load_prompts(
    config: PromptFileConfig, tokenizer: Any, engine_takes: int | None = None, source: str = ""
) -> Prompts:
    """Reads, renders and tokenises every row of `config.path`.

    The result depends only on the file, the config and the tokenizer, so a row's number means the same in every
    process. Raises DataError, with file and line, for a faulty row, for a prompt that is longer than the engine takes
    (`engine_takes` tokens) but not longer than max_prompt_tokens, and when no usable row is left. `source` is the name
    that the prompts bear.
    """
    template = ChatTemplate(config, tokenizer)
    rows, too_long = [], 0
    checked = (checked_row(record, config) for record in read_records(config.path))
    for row, text, ids in tokenised(checked, template):
        if check_length(row, len(ids), config, engine_takes):
            prompt = Prompt(
                ids=ids,
                text=text,
                label=row.label,
                metadata=row.metadata,
                messages=row.messages,
                source=source,
            )
            rows.append(prompt)
        else:
            too_long += 1
    if not rows:
        raise DataError(no_usable_prompt(config, too_long))
    return Prompts(rows=rows, too_long=too_long)


def checked_row(record: Record, config: PromptFileConfig) -> Row:
    """Reads one row. Raises DataError, with its place, if something is wrong with it."""
    row = prompt_row(record, config)
    row.label, row.metadata = _label(record, config), _metadata(record, config)
    try:
        msgspec.msgpack.encode((row.label, row.metadata, row.messages))
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{row.where}: prompt, label or metadata cannot be sent to the reward: {error}"
        ) from error
    return row


def prompt_row(record: Record, config: PromptFileConfig) -> Row:
    """Reads a row's prompt and tools alone. Raises DataError."""
    where, columns = record
    messages, continued = _final_message(prompt_messages(record, config), where, config)
    tools, key = None, config.tools_key
    if key is not None and (key in columns or key.split(".")[0] in columns):
        tools = chat_tools(column(record, key), f"{where}: {key!r}")
    return Row(where=where, messages=messages, tools=tools, continued=continued)


def tokenised(rows: Iterable[Row], template: ChatTemplate) -> Iterator[tuple[Row, str, list[int]]]:
    """Yields each row with its rendered text and its tokens."""
    for some in batched(rows, _ROWS_AT_ONCE):
        texts = [template.render(row.messages, row.where, row.tools, row.continued) for row in some]
        yield from zip(some, texts, template.tokens(texts), strict=True)


def check_length(row: Row, tokens: int, config: PromptFileConfig, engine_takes: int | None) -> bool:
    """Whether a prompt is short enough; longer ones are left out. Raises DataError if it can't be generated from."""
    if tokens == 0:
        raise DataError(f"{row.where}: the prompt is empty")
    if tokens > config.max_prompt_tokens:
        return False
    if engine_takes is not None and tokens > engine_takes:
        raise DataError(
            f"{row.where}: the prompt has {tokens} tokens, but with rollout.sampling.max_new_tokens new ones the "
            f"engine takes at most {engine_takes}: set max_prompt_tokens to at most {engine_takes}, which leaves such "
            "rows out, or lower max_new_tokens"
        )
    return True


def no_usable_prompt(config: PromptFileConfig, too_long: int) -> str:
    """The fault of a file of which no row is left."""
    longer = (
        f"; {too_long} are longer than max_prompt_tokens = {config.max_prompt_tokens}" if too_long else ""
    )
    return f"{config.path}: no usable prompt{longer}"


def prompt_messages(record: Record, config: PromptFileConfig) -> list[Message]:
    """Returns the row's prompt as chat messages, after the recipe's system message if there is one."""
    messages = chat_messages(column(record, config.prompt_key), f"{record[0]}: {config.prompt_key!r}")
    return [{"role": "system", "content": config.system}, *messages] if config.system else messages


def _final_message(
    messages: list[Message], where: str, config: PromptFileConfig
) -> tuple[list[Message], bool]:
    """The messages to render, and whether the last one is to be continued."""
    if messages[-1]["role"] != "assistant" or (
        not config.chat_template and config.final_assistant == "refuse"
    ):
        return messages, False
    if config.final_assistant == "refuse":
        raise DataError(
            f"{where}: {config.prompt_key!r} ends with a message of the assistant; set final_assistant to `continue` "
            "if the model is to continue it, or to `drop` to leave it out of the prompt"
        )
    if config.final_assistant == "continue":
        return messages, True
    if len(messages) == 1:
        raise DataError(f"{where}: {config.prompt_key!r} has no message before the assistant's")
    return messages[:-1], False


def _label(record: Record, config: PromptFileConfig) -> Any:
    if config.label_key is None:
        return None
    label = column(record, config.label_key)
    if label is None or (isinstance(label, float) and math.isnan(label)):
        raise DataError(
            f"{record[0]}: the label {config.label_key!r} is {'null' if label is None else 'not a number (NaN)'}; "
            "leave the row out, or set label_key: null and read what there is from the metadata"
        )
    return label


def _metadata(record: Record, config: PromptFileConfig) -> dict[str, Any]:
    where, row = record
    own = row.get("metadata") or {}
    if not isinstance(own, dict):
        raise DataError(f"{where}: metadata is {own!r}; an object is needed")
    taken = {config.prompt_key, config.label_key, "metadata"}
    return {name: value for name, value in row.items() if name not in taken} | own
