"""Chat messages and tools of a row, whatever data set they come from, in the one form that chat templates take.

Read are OpenAI's form (`role`, `content`), ShareGPT's (`from`, `value`) and contents in parts of text. A key whose
value is null counts as absent, because Parquet fills up with null what other rows have.
"""

from __future__ import annotations

import json
from typing import Any

from verst.runtime.data.records import DataError

# A role, a content (a string, or None beside tool_calls), and what else the template may use.
Message = dict[str, Any]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


def chat_messages(value: Any, what: str) -> list[Message]:
    """Reads a prompt or a conversation: a string is one message of the user.

    `what` begins the error messages and says where the value stands: "train.jsonl:3: 'prompt'". Raises DataError.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    messages = [without_nulls(message) for message in value] if isinstance(value, list) else []
    if not messages or not all(_is_message(message) for message in messages):
        raise DataError(
            f"{what} is {str(value)[:80]!r}; a string or a list of {{role, content}} messages is needed"
        )
    return [_message(message, f"{what}, message {number}") for number, message in enumerate(messages, 1)]


def chat_tools(value: Any, what: str) -> list[dict[str, Any]] | None:
    """Reads a row's tools: a list of JSON schemas, or the same as a JSON string. None if there are none."""
    tools = value
    if isinstance(value, str):
        try:
            tools = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise DataError(f"{what} is {value[:80]!r}, which is not JSON: {error}") from error
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{what} is {str(value)[:80]!r}; a list of JSON schemas is needed")
    return [without_nulls(tool) for tool in tools]


def without_nulls(value: Any) -> Any:
    """The value without the keys, at any depth, whose value is null."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def with_answer(messages: list[Message], text: str) -> list[Message]:
    """A prompt's messages and the answer, which continues the last one if that is the assistant's."""
    *before, last = messages
    if last["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": text}]
    return [*before, {**last, "content": (last["content"] or "") + text}]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role", message.get("from")), str)


def _message(message: Message, what: str) -> Message:
    if "role" not in message:
        message = _from_sharegpt(message, what)
    content = message.get("content")
    if isinstance(content, list):
        content = _joined(content, what)
    elif content is None and message.get("tool_calls"):
        return {**message, "content": None}  # the usual form of a turn that only calls tools
    if not isinstance(content, str):
        held = "has no content" if content is None else f"has the content {str(content)[:80]}"
        raise DataError(f"{what} (of the role {message['role']!r}) {held}; a string is needed")
    return {**message, "content": content}


def _from_sharegpt(message: Message, what: str) -> Message:
    role = _SHAREGPT_ROLES.get(message["from"])
    if role is None:
        known = ", ".join(_SHAREGPT_ROLES)
        raise DataError(f"{what} is from {message['from']!r}; known are {known}")
    rest = {name: value for name, value in message.items() if name not in ("from", "value")}
    return {"role": role, "content": message.get("value"), **rest}


def _joined(parts: list[Any], what: str) -> str:
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(f"{what} has a part of the type {kind!r}; only text can be trained on")
        texts.append(text)
    return "".join(texts)
