"""Renders chat messages with a tokenizer's chat template, as the recipe's `data` section says.

Whatever a template cannot render is a DataError that names file and line.
"""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any

from verst.runtime.data.chat import Message
from verst.runtime.data.config import PromptFileConfig
from verst.runtime.data.records import DataError

# What Verst itself gives to a template.
_OURS = {"messages", "tools", "tokenize", "add_generation_prompt", "continue_final_message", "chat_template"}
_PROBE = "Verst"


class ChatTemplate:
    """The template of one prompt file, and the tokenizer that it belongs to."""

    def __init__(self, config: PromptFileConfig, tokenizer: Any) -> None:
        """Raises DataError if there is no template, or if it does not use an argument that the recipe gives."""
        self._config = config
        self._tokenizer = tokenizer
        self._own = _read(config.chat_template_file)
        self._knows_tools = False
        if not config.chat_template:
            return
        if not (self._own or tokenizer.chat_template):
            raise DataError(
                f"{config.path}: the tokenizer has no chat template; set chat_template: false, name a "
                "chat_template_file, or add one to the tokenizer"
            )
        self._knows_tools = "tools" in _names(self._text(tools=True))
        self._refuse_unused_arguments()

    def render(
        self,
        messages: list[Message],
        where: str,
        tools: list[dict[str, Any]] | None = None,
        continued: bool = False,
    ) -> str:
        """The text that the model continues. `where` is the row's place.

        continued: the model continues the last message, which is the assistant's, instead of beginning one.
        """
        if not self._config.chat_template:
            return self._plain(messages, where, tools)
        self._refuse_unused_tools(tools, where)
        return self._apply(messages, where, tools, add_generation_prompt=not continued, continued=continued)

    @property
    def used(self) -> bool:
        """Whether messages are rendered with a template at all."""
        return self._config.chat_template

    def whole(self, messages: list[Message], where: str, tools: list[dict[str, Any]] | None) -> str:
        """The text of a whole conversation, which nothing continues. `where` is the row's place."""
        self._refuse_unused_tools(tools, where)
        return self._apply(messages, where, tools, add_generation_prompt=False, continued=False)

    def source(self, tools: bool) -> str:
        """The template itself, for messages with or without tools."""
        return self._text(tools)

    @property
    def variables(self) -> dict[str, Any]:
        """What the template gets besides messages and tools."""
        return {**self._tokenizer.special_tokens_map, **self._config.chat_template_kwargs}

    def ending(self, tokens: list[int]) -> int:
        """How many of the tokens after a turn of the assistant end it: up to the first special one, if only white
        space is before that; else 0."""
        for place, token in enumerate(tokens):
            if token in self._special:
                return place + 1
            if self._tokenizer.decode([token]).strip():
                break
        return 0

    def end_of_sequence(self) -> int:
        """The tokenizer's end-of-sequence token. Raises DataError if it has none."""
        if self._tokenizer.eos_token_id is None:
            raise DataError(f"{self._config.path}: nothing ends a response: the tokenizer has no eos_token")
        return int(self._tokenizer.eos_token_id)

    @functools.cached_property
    def _special(self) -> set[int]:
        special = set(self._tokenizer.all_special_ids)
        return special | {id for id, token in self._tokenizer.added_tokens_decoder.items() if token.special}

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """The tokens of rendered texts. A template writes its own special tokens; plain text gets the tokenizer's."""
        return self._tokenizer(texts, add_special_tokens=not self._config.chat_template)["input_ids"]

    def turn_end(self, messages: list[Message], where: str) -> list[int]:
        """The tokens that end the assistant's answer to `messages`: what the template writes after it, up to the first
        special token. Without a template, or if it writes none: the tokenizer's end-of-sequence token."""
        ends = self._after_an_answer(messages, where) if self._config.chat_template else []
        for place, token in enumerate(ends):
            if token in self._special:
                return ends[: place + 1]
        return [self.end_of_sequence()]

    def _refuse_unused_tools(self, tools: list[dict[str, Any]] | None, where: str) -> None:
        if tools and not self._knows_tools:
            raise DataError(
                f"{where}: the row has tools, which the chat template does not use; use another template "
                "(chat_template_file), or set tools_key: null"
            )

    def following(
        self, messages: list[Message], where: str, tools: list[dict[str, Any]] | None = None
    ) -> tuple[str, str]:
        """The text after an answer of the assistant's: what ends it, and the new `messages` up to where the next answer
        begins. Raises DataError."""
        said = [{"role": "user", "content": _PROBE.lower()}, {"role": "assistant", "content": _PROBE}]
        ended, whole = (
            self._apply([*said, *more], where, tools, add_generation_prompt=bool(more), continued=False)
            for more in ([], messages)
        )
        end, after = ended.rpartition(_PROBE)[2], whole.partition(_PROBE)[2]
        if not after.startswith(end):
            raise DataError(
                f"{where}: the chat template ends an answer differently if messages follow, {after[: len(end)]!r} "
                f"instead of {end!r}: a conversation cannot be continued with it"
            )
        return end, after.removeprefix(end)

    def _after_an_answer(self, messages: list[Message], where: str) -> list[int]:
        if messages[-1]["role"] == "assistant":  # the answer continues it
            messages = messages[:-1]
        messages = [*messages, {"role": "assistant", "content": _PROBE}]
        text = self._apply(messages, where, None, add_generation_prompt=False, continued=False)
        _, _, after = text.rpartition(_PROBE)
        return self._tokenizer(after, add_special_tokens=False)["input_ids"]

    def _apply(
        self,
        messages: list[Message],
        where: str,
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        continued: bool,
    ) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self._own,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continued,
                **self._config.chat_template_kwargs,
            )
        except Exception as error:  # a template is a program, which may raise anything
            raise DataError(f"{where}: the chat template does not take these messages: {error}") from error

    def _plain(self, messages: list[Message], where: str, tools: list[dict[str, Any]] | None) -> str:
        if tools:
            raise DataError(
                f"{where}: the row has tools, which only a chat template can tell the model, but chat_template is "
                "false; set tools_key: null to leave them out"
            )
        texts = [message["content"] for message in messages]
        if None in texts:
            raise DataError(
                f"{where}: a message calls tools and has no text, and chat_template is false; a string is needed"
            )
        return "\n".join(texts)

    def _refuse_unused_arguments(self) -> None:
        names = _names(self._text(tools=False)) | _names(self._text(tools=True))
        for argument in self._config.chat_template_kwargs:
            if argument in _OURS:
                raise DataError(f"{self._config.path}: chat_template_kwargs: Verst itself sets {argument!r}")
            if argument not in names:
                near = difflib.get_close_matches(argument, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DataError(
                    f"{self._config.path}: chat_template_kwargs has {argument!r}, which the chat template does not "
                    f"use{hint}"
                )

    def _text(self, tools: bool) -> str:
        try:
            return self._tokenizer.get_chat_template(self._own, [{}] if tools else None)
        except ValueError as error:
            raise DataError(f"{self._config.path}: {error}") from error


def _read(file: str | None) -> str | None:
    if file is None:
        return None
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"chat_template_file {file} cannot be read: {error}") from error


def _names(template: str) -> set[str]:
    """The words in a template: a name that is not among them cannot be used by it."""
    return set(re.findall(r"[A-Za-z_]\w*", template))
