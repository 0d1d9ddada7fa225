"""OpenAI's form: `POST /v1/chat/completions`."""

from __future__ import annotations

import json
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
    strings,
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
    sampling = {
        "temperature": number(options, "temperature", float, 0, 100),
        "top_p": number(options, "top_p", float, 1e-9, 1),
        "stop": strings(options, "stop"),
    }
    return ChatRequest(
        messages=read_messages(options.get("messages")),
        tools=read_tools(options.get("tools", [])),
        sampling={name: value for name, value in sampling.items() if value is not None},
        max_tokens=min((limit for limit in limits if limit is not None), default=None),
        model=str(options.get("model", "")),
    )


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """The tools of a request. Raises Refused."""
    for tool in tools if isinstance(tools, list) else [None]:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(
                400, "tools must be a list of {type: function, function: {name, parameters}}", "tools"
            )
    return list(tools)


def write(reply: Reply, model: str) -> dict[str, Any]:
    """The body of an answer."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.calls
        ]
    ended = "tool_calls" if reply.calls and reply.finish == "stop" else reply.finish
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": ended}],
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.tokens,
            "total_tokens": reply.prompt_tokens + reply.tokens,
        },
    }


def error(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """The body of a refusal."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_message(reply: Reply) -> dict[str, Any]:
    """The reply as a message of the history, its arguments parsed as `read_messages` does."""
    message = write(reply, "")["choices"][0]["message"]
    for call in message.get("tool_calls", []):
        try:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        except ValueError:
            continue
    return dict(message)
