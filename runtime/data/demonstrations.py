"""Reads demonstrations for supervised steps: prompts with the responses to imitate.

A row has a prompt and a response, or one conversation (`messages_key`) whose last message is the response.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import batched
from typing import Any

import msgspec
import numpy as np

from verst.runtime.algorithms.config import WarmStartConfig
from verst.runtime.data.chat import Message, chat_messages
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.config import PromptFileConfig, PromptStyle
from verst.runtime.data.prompts import Row, prompt_row, tokenised
from verst.runtime.data.records import DataError, Record, column, read_records

_ROWS_AT_ONCE = 256


class Demonstration(msgspec.Struct, kw_only=True):
    """A prompt and its response, which ends with what ends a turn of the assistant."""

    where: str  # the row's place: "demonstrations.jsonl:17"
    prompt_ids: np.ndarray  # int32 [P]
    response_ids: np.ndarray  # int32 [R]

    @property
    def length(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt_ids) + len(self.response_ids)


def load_demonstrations(config: WarmStartConfig, prompts: PromptStyle, tokenizer: Any) -> list[Demonstration]:
    """Reads and tokenises `config.path`. Prompts are rendered as those of training, which `prompts` configures.

    Raises DataError for a faulty row, and when there is none.
    """
    demonstrations = list(read_demonstrations(config, prompts, tokenizer))
    if not demonstrations:
        raise DataError(f"{config.path}: the file has no demonstrations")
    return demonstrations


def read_demonstrations(
    config: WarmStartConfig, prompts: PromptStyle, tokenizer: Any
) -> Iterator[Demonstration]:
    """Yields the demonstrations one by one. Raises DataError at the first faulty row."""
    style = demonstration_style(config, prompts)
    template = ChatTemplate(style, tokenizer)
    end: list[int] | None = None
    checked = (checked_demonstration(record, config, style) for record in read_records(config.path))
    for some in batched(checked, _ROWS_AT_ONCE):
        responses = [response for _, response in some]
        answers = tokenizer(responses, add_special_tokens=False)["input_ids"]
        for (row, _, ids), answer in zip(tokenised([r for r, _ in some], template), answers, strict=True):
            if not ids:
                raise DataError(f"{row.where}: the prompt is empty")
            if end is None:
                end = template.turn_end(row.messages, row.where)
            yield Demonstration(
                where=row.where,
                prompt_ids=np.array(ids, dtype=np.int32),
                response_ids=np.array(answer + end, dtype=np.int32),
            )


def check_demonstration_length(shown: Demonstration, most: int) -> None:
    """Raises DataError if a demonstration has more than `most` tokens, which is all that a micro-batch can hold."""
    if shown.length > most:
        raise DataError(
            f"{shown.where}: prompt and response have {shown.length} tokens together, more than the {most} that "
            "trainer.max_tokens_per_microbatch holds; raise it, or leave the row out"
        )


def demonstration_style(config: WarmStartConfig, prompts: PromptStyle) -> PromptFileConfig:
    """How demonstrations are rendered: as the training prompts are, but from their own file and columns."""
    keys = {"path": config.path, "prompt_key": config.messages_key or config.prompt_key, "label_key": None}
    refuse = {} if prompts.final_assistant == "continue" else {"final_assistant": "refuse"}
    style = {key: getattr(prompts, key) for key in PromptStyle.model_fields}
    return PromptFileConfig(**style | keys | refuse)


def checked_demonstration(
    record: Record, config: WarmStartConfig, style: PromptFileConfig
) -> tuple[Row, str]:
    """Reads one row: the prompt, and the text of the response. Raises DataError."""
    where, columns = record
    key = config.messages_key or config.response_key
    value = column(record, key)
    what = f"{where}: {key!r}"
    if config.messages_key is None:
        if isinstance(value, str):
            return prompt_row(record, style), value
        if not isinstance(value, list):
            raise DataError(f"{what} is {value!r}, not a string or a message of the assistant")
        (*before, answer) = chat_messages(value, what)
        if before:
            raise DataError(
                f"{what} has {len(before) + 1} messages; only one, the assistant's, can be the response"
            )
        return prompt_row(record, style), _text(answer, what)
    (*before, answer) = chat_messages(value, what)
    if not before:
        raise DataError(f"{what} has only one message; a prompt and the assistant's response are needed")
    return prompt_row((where, {**columns, key: before}), style), _text(answer, what)


def _text(answer: Message, what: str) -> str:
    if answer["role"] != "assistant":
        raise DataError(
            f"{what} ends with a message of the role {answer['role']!r}; the assistant's is needed"
        )
    if answer["content"] is None or answer.get("tool_calls"):
        raise DataError(f"{what} ends with a call of tools; a text is needed")
    return answer["content"]
