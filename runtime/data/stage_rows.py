"""Reads and checks single rows of stages without engines, as far as that needs no tokenizer."""

from __future__ import annotations

from verst.runtime.algorithms.stages import PairFileConfig, RowFileConfig, SftFileConfig
from verst.runtime.data.chat import Message, chat_messages
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.prompts import Row, prompt_row
from verst.runtime.data.records import DataError, Record, column


def longest_row(config: RowFileConfig, most: int) -> int:
    """The tokens of the longest row that is used, where a micro-batch holds `most`."""
    return most if config.max_tokens is None else min(config.max_tokens, most)


def row_style(config: SftFileConfig | PairFileConfig) -> PromptFileConfig:
    """How rows are rendered, in the terms of a prompt file."""
    messages = config.messages_key if isinstance(config, SftFileConfig) else None
    return PromptFileConfig(
        path=config.path,
        prompt_key=messages or config.prompt_key or "",
        label_key=None,
        tools_key=config.tools_key,
        chat_template=config.chat_template,
        chat_template_file=config.chat_template_file,
        chat_template_kwargs=config.chat_template_kwargs,
        system=config.system,
        # A conversation ends with the assistant's turn. A prompt may not: what follows it would be unclear.
        final_assistant="continue" if messages else "refuse",
    )


def checked_demonstration(record: Record, config: SftFileConfig) -> tuple[Row, str]:
    """Reads one row: its messages, and the text of the response; "" for a conversation. Raises DataError."""
    where, _ = record
    style = row_style(config)
    if config.messages_key is not None:
        row = prompt_row(record, style)
        if all(message["role"] != "assistant" for message in row.messages):
            raise DataError(f"{where}: {config.messages_key!r} has no message of the assistant to train on")
        return row, ""
    key = config.response_key
    value = column(record, key)
    what = f"{where}: {key!r}"
    if isinstance(value, str):
        return prompt_row(record, style), value
    if not isinstance(value, list):
        raise DataError(f"{what} is {value!r}, not a string or a message of the assistant")
    (*before, answer) = chat_messages(value, what)
    if before:
        raise DataError(
            f"{what} has {len(before) + 1} messages; only one, the assistant's, can be the response. For whole "
            "conversations set messages_key"
        )
    return prompt_row(record, style), _text(answer, what)


def _text(answer: Message, what: str) -> str:
    if answer["role"] != "assistant":
        raise DataError(
            f"{what} ends with a message of the role {answer['role']!r}; the assistant's is needed"
        )
    if answer["content"] is None or answer.get("tool_calls"):
        raise DataError(
            f"{what} ends with a call of tools; a text is needed. For calls of tools set messages_key"
        )
    return answer["content"]
