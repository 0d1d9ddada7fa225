"""OpenAI's form: `POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from typing import Any

from verst.runtime.rollout.chat_server.replies import Reply
from verst.runtime.rollout.chat_server.request import (
    ChatRequest,
    Refused,
    known,
    number,
    read_messages,
    sampling_of,
    with_parsed_arguments,
)

_USED = {
    "messages", "tools", "model", "temperature", "top_p", "stop", "max_tokens", "max_completion_tokens",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "store": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "parallel_tool_calls": (True,),
    "tool_choice": ("auto",),
    "response_format": ({"type": "text"},),
}
_WITHOUT_EFFECT = {"user", "metadata", "safety_identifier", "prompt_cache_key"}  # on the answer


def read(body: Any) -> ChatRequest:
    """Reads a request. Raises Refused."""
    options = known(body, _USED | _WITHOUT_EFFECT, _NEUTRAL)
    limits = [number(options, name, int, 1, 1 << 31) for name in ("max_tokens", "max_completion_tokens")]
    return ChatRequest(
        messages=read_messages(options.get("messages")),
        tools=_tools(options.get("tools", [])),
        sampling=sampling_of(options, "stop"),
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        model=str(options.get("model", "")),
    )


def _tools(tools: Any) -> list[dict[str, Any]]:
    for tool in tools if isinstance(tools, list) else [None]:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(
                400, "tools must be a list of {type: function, function: {name, parameters}}", "tools"
            )
    return list(tools)


def write(reply: Reply, model: str) -> dict[str, Any]:
    """The body of an answer."""
    ended = "tool_calls" if reply.calls and reply.finish == "stop" else reply.finish
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": _message(reply), "logprobs": None, "finish_reason": ended}],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.tokens,
            "total_tokens": reply.prompt_tokens + reply.tokens,
        },
    }


def _message(reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.calls
        ]
    return message


def error(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_message(reply: Reply) -> dict[str, Any]:
    """The reply as a message of the history, as `read_messages` reads it."""
    return with_parsed_arguments(_message(reply))
