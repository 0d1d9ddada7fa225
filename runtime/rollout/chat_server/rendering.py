"""Makes tokens of messages: of a whole prompt, or of what follows a turn that was generated."""

from __future__ import annotations

from typing import Any

from verst.runtime.data.chat import Message
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.records import DataError
from verst.runtime.rollout.chat_server.request import Refused

_HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


class Rendering:
    """A chat template with its tokenizer."""

    def __init__(self, template: ChatTemplate) -> None:
        """Raises DataError if the template cannot continue a conversation."""
        if not template.used:
            raise DataError("chat_template is false: an agent's messages need the chat template")
        self._template = template
        *_, end = template.turn_end(_HELLO, "the chat template")
        self.ends = {end}  # tokens that are no text of an answer
        template.following(_HELLO, "the chat template")

    def prompt(self, messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        """The tokens of a prompt. Raises Refused if the template does not take it."""
        try:
            return self._template.tokens([self._template.render(messages, "messages", tools or None)])[0]
        except DataError as error:
            raise Refused(400, str(error), "messages") from None

    def differs(self, ids: list[int], messages: list[Message], tools: list[dict[str, Any]]) -> bool:
        """Whether the template writes other tokens for the whole chat than `ids`, or does not take it at all."""
        try:
            return self.prompt(messages, tools) != ids
        except Refused:
            return True

    def following(self, ids: list[int], messages: list[Message], tools: list[dict[str, Any]]) -> list[int]:
        """The tokens that new messages add after an assistant's turn, up to where the next one begins.

        They begin with what the template writes to end a turn, less what of it the turn has generated itself: `ids` are
        all tokens so far. Raises Refused if the template does not take the messages.
        """
        try:
            end, rest = self._template.following(messages, "messages", tools or None)
        except DataError as error:
            raise Refused(400, str(error), "messages") from None
        added, ends = self._template.tokens([end + rest, end])
        written = next(
            (k for k in range(len(ends), 0, -1) if ids[-k:] == ends[:k] == added[:k]),
            0,
        )
        return added[written:]
