"""Makes a reply of generated tokens: text, reasoning and tool calls, by SGLang's own parsers."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from verst.runtime.rollout.chat_server.request import Refused

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool, as the model wrote it."""

    id: str
    name: str
    arguments: str  # JSON


@dataclass(frozen=True)
class Reply:
    """One turn of the assistant."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    tokens: int
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""


class Parsers:
    """The parsers that the recipe names in `rollout.sglang`: `tool-call-parser` and `reasoning-parser`."""

    def __init__(self, tokenizer: Any, tool_call_parser: str | None, reasoning_parser: str | None) -> None:
        """Raises ValueError for a parser that SGLang does not have."""
        self._tokenizer = tokenizer
        self._tool_call_parser = tool_call_parser
        self._reasoning_parser = reasoning_parser
        if tool_call_parser is not None:
            self._tool_parser([])
        if reasoning_parser is not None:
            self._split_reasoning("")

    def check_tools(self, tools: list[dict[str, Any]]) -> None:
        """Raises Refused for tools without a parser of their calls, or of a form that it does not take."""
        if not tools:
            return
        if self._tool_call_parser is None:
            raise Refused(
                400, "tools need a parser of their calls: set tool-call-parser in rollout.sglang", "tools"
            )
        try:
            self._tool_parser(tools)
        except ValueError as error:
            raise Refused(400, f"tools: {error}", "tools") from None

    def text_of(self, ids: list[int], ends: set[int], stops: list[str], *, whole: bool) -> str:
        """The text of a turn, without what ended it. `whole`: with special tokens, which parsers look for."""
        kept = ids[:-1] if ids and ids[-1] in ends else ids
        text = str(
            self._tokenizer.decode(kept, skip_special_tokens=not whole, clean_up_tokenization_spaces=False)
        )
        places = [place for stop in stops if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text

    @property
    def reads_reasoning(self) -> bool:
        """Whether reasoning is told apart from text."""
        return self._reasoning_parser is not None

    def parsed(self, text: str, tools: list[dict[str, Any]]) -> tuple[str, str, tuple[ToolCall, ...]]:
        """Text, reasoning and tool calls of what the model wrote. Text that no parser understands stays text."""
        reasoning, text = self._split_reasoning(text) if self.reads_reasoning else ("", text)
        if not tools:
            return text, reasoning, ()
        parser = self._tool_parser(tools)
        if not parser.has_tool_call(text):
            return text, reasoning, ()
        try:
            plain, calls = parser.parse_non_stream(text)
        except Exception as error:  # the model may write anything, and SGLang's server takes it as text, too
            log.warning("%s cannot parse a turn, which stays text: %r", self._tool_call_parser, error)
            return text, reasoning, ()
        made = tuple(
            ToolCall(f"call_{uuid.uuid4().hex[:24]}", str(call.name), call.parameters) for call in calls
        )
        return (plain if made else text), reasoning, made

    def _tool_parser(self, tools: list[dict[str, Any]]) -> Any:
        from sglang.srt.entrypoints.openai.protocol import Tool
        from sglang.srt.function_call.function_call_parser import FunctionCallParser

        return FunctionCallParser(
            [Tool.model_validate(tool) for tool in tools], self._tool_call_parser, tokenizer=self._tokenizer
        )

    def _split_reasoning(self, text: str) -> tuple[str, str]:
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        parser = ReasoningParser(self._reasoning_parser, stream_reasoning=False, tokenizer=self._tokenizer)
        reasoning, rest = parser.parse_non_stream(text)
        return reasoning or "", rest or ""
