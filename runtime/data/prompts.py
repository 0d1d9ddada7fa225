"""Reads prompt files: renders each row with the tokenizer's chat template, and tokenises it."""

from __future__ import annotations

from typing import Any

import msgspec

from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.records import DataError, Record, column, read_records
from verst.runtime.messages.jobs import Prompt


class Prompts(msgspec.Struct, kw_only=True):
    """The usable rows of a prompt file, in the file's order."""

    rows: list[Prompt]
    dropped: int  # the number of rows longer than max_prompt_tokens

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Prompt:
        return self.rows[row]


def load_prompts(config: PromptFileConfig, tokenizer: Any) -> Prompts:
    """Reads, renders and tokenises every row of `config.path`.

    The result depends only on the file, the config and the tokenizer, so a row's number means the same in every
    process. Raises DataError, with file and line, for a faulty row, and when no usable row is left.
    """
    rows, dropped = [], 0
    for record in read_records(config.path):
        text = render(prompt_messages(record, config), config, tokenizer)
        ids = tokenizer(text, add_special_tokens=not config.chat_template)["input_ids"]
        if len(ids) > config.max_prompt_tokens:
            dropped += 1
            continue
        if not ids:
            raise DataError(f"{record[0]}: the prompt is empty")
        label = column(record, config.label_key) if config.label_key else None
        rows.append(Prompt(ids=ids, text=text, label=label, metadata=_metadata(record, config)))
    if not rows:
        longer = (
            f"; {dropped} are longer than max_prompt_tokens = {config.max_prompt_tokens}" if dropped else ""
        )
        raise DataError(f"{config.path}: no usable prompt{longer}")
    return Prompts(rows=rows, dropped=dropped)


def prompt_messages(record: Record, config: PromptFileConfig) -> list[dict[str, Any]]:
    """Returns the row's prompt as chat messages, after the recipe's system message if there is one."""
    where, _ = record
    prompt = column(record, config.prompt_key)
    if isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list) and prompt and all(_is_message(message) for message in prompt):
        messages = prompt
    else:
        raise DataError(
            f"{where}: {config.prompt_key!r} is {str(prompt)[:80]!r}; a string or a list of "
            "{role, content} messages is needed"
        )
    return [{"role": "system", "content": config.system}, *messages] if config.system else messages


def render(messages: list[dict[str, Any]], config: PromptFileConfig, tokenizer: Any) -> str:
    """Renders messages as the text that the model continues."""
    if config.chat_template:
        if not tokenizer.chat_template:
            raise DataError(
                f"{config.path}: the tokenizer has no chat template; set chat_template: false, or add one to it"
            )
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return "\n".join(message["content"] for message in messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message


def _metadata(record: Record, config: PromptFileConfig) -> dict[str, Any]:
    where, row = record
    own = row.get("metadata") or {}
    if not isinstance(own, dict):
        raise DataError(f"{where}: metadata is {own!r}; an object is needed")
    taken = {config.prompt_key, config.label_key, "metadata"}
    return {name: value for name, value in row.items() if name not in taken} | own
