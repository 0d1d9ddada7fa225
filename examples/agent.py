"""An agent that adds with a tool, by OpenAI's client: `rollout.agent: examples.agent:adds`.

It needs the parser of the model's tool calls: `rollout.sglang: {tool-call-parser: qwen25}`.
"""

import json
from typing import Any

from openai import AsyncOpenAI

from verst.runtime.rollout.chat_server.agent import AgentCall

_NUMBER = {"type": "number"}
_PARAMETERS = {"type": "object", "properties": {"a": _NUMBER, "b": _NUMBER}, "required": ["a", "b"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "add", "parameters": _PARAMETERS}}]


async def adds(call: AgentCall) -> None:
    messages: list[Any] = list(call.messages)
    async with AsyncOpenAI(base_url=call.base_url, api_key=call.api_key, max_retries=0) as client:
        for _ in range(4):
            reply = await client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
            said = reply.choices[0].message
            messages.append(said.model_dump(exclude_none=True))  # as it came: it must not change
            if not said.tool_calls:
                return  # the recipe's reward scores the episode
            for asked in said.tool_calls:
                messages.append({"role": "tool", "tool_call_id": asked.id, "content": added(asked)})


def added(asked: Any) -> str:
    try:
        numbers = json.loads(asked.function.arguments)
        return str(numbers["a"] + numbers["b"])
    except (ValueError, KeyError, TypeError):
        return "error: two numbers are needed, a and b"
