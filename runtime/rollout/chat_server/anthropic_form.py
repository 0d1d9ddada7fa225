"""Anthropic's form: `POST /v1/messages`. Its blocks become messages of OpenAI's form."""

from __future__ import annotations

import json
import uuid
from typing import Any

from verst.runtime.rollout.chat_server.replies import Reply
from verst.runtime.rollout.chat_server.request import (
    ChatRequest,
    Refused,
    as_object,
    known,
    number,
    parsed,
    read_messages,
    sampling_of,
)

_USED = {
    "messages", "system", "tools", "model", "max_tokens", "temperature", "top_p", "stop_sequences", "metadata",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "tool_choice": ({"type": "auto"},),
    "thinking": ({"type": "disabled"},),
}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def read(body: Any) -> ChatRequest:
    """Reads a request. Raises Refused."""
    options = known(body, _USED, _NEUTRAL)
    system = options.get("system")
    before = [] if not system else [{"role": "system", "content": _text(system, "system")}]
    messages = options.get("messages")
    if not isinstance(messages, list):
        raise Refused(400, "messages must be a list", "messages")
    if (most := number(options, "max_tokens", int, 1, 1 << 31)) is None:
        raise Refused(400, "max_tokens is missing", "max_tokens")
    return ChatRequest(
        messages=read_messages(before + [out for message in messages for out in _messages(message)]),
        tools=_tools(options.get("tools", [])),
        sampling=sampling_of(options, "stop_sequences"),
        max_tokens=most,
        model=str(options.get("model", "")),
    )


def write(reply: Reply, model: str) -> dict[str, Any]:
    """The body of an answer."""
    content: list[dict[str, Any]] = []
    if reply.reasoning:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.text:
        content.append({"type": "text", "text": reply.text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": as_object(parsed(call.arguments))}
        for call in reply.calls
    ]
    reason = "tool_use" if reply.calls and reply.finish == "stop" else _STOP_REASONS[reply.finish]
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": reply.prompt_tokens, "output_tokens": reply.tokens},
    }


def error(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The body of a refusal."""
    kinds = {401: "authentication_error", 404: "not_found_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _messages(message: Any) -> list[dict[str, Any]]:
    """A message of blocks as messages: results of tools are messages of their own."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise Refused(400, "each of messages needs the role user or assistant", "messages")
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    made: list[dict[str, Any]] = []
    texts, calls = [], []
    for given in content if isinstance(content, list) else [None]:
        block: dict[str, Any] = given if isinstance(given, dict) else {}
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind == "tool_use" and role == "assistant":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input", {}))}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result" and role == "user":
            result = _text(block.get("content") or "", "content of a tool_result")
            made.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result})
        elif kind not in ("thinking", "redacted_thinking") or role != "assistant":
            raise Refused(
                400, f"messages has a block of the type {kind!r}, which is not supported", "messages"
            )
    if texts or calls or not made:
        own: dict[str, Any] = {"role": role, "content": "".join(texts)}
        made.append({**own, "tool_calls": calls} if calls else own)
    return made


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    blocks: list[Any] = value if isinstance(value, list) else [None]
    if not all(isinstance(block, dict) and block.get("type") == "text" for block in blocks):
        raise Refused(400, f"{what} must be a string or a list of text blocks", what)
    return "".join(str(block.get("text", "")) for block in blocks)


def _tools(tools: Any) -> list[dict[str, Any]]:
    return [_tool(tool) for tool in (tools if isinstance(tools, list) else [None])]


def _tool(tool: Any) -> dict[str, Any]:
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or "input_schema" not in tool:
        raise Refused(400, "tools must be a list of {name, description, input_schema}", "tools")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}
