"""An agent that adds with a tool: `rollout: {agent: examples.agent:adds, sglang: {tool-call-parser: qwen25}}`."""

import json

from openai import AsyncOpenAI

from verst.runtime.rollout.chat_server.agent import AgentCall

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


async def adds(call: AgentCall) -> None:
    async with AsyncOpenAI(base_url=call.base_url, api_key=call.api_key, max_retries=0) as client:
        for _ in range(4):
            reply = await client.chat.completions.create(model="", messages=call.messages, tools=TOOLS)
            said = reply.choices[0].message
            call.messages.append(said.model_dump(exclude_none=True))  # as it came: it must not change
            if not said.tool_calls:
                return  # the recipe's reward scores the episode
            for asked in said.tool_calls:
                call.messages.append({"role": "tool", "tool_call_id": asked.id, "content": total(asked)})


def total(asked) -> str:
    try:
        return str(sum(json.loads(asked.function.arguments).values()))
    except (ValueError, AttributeError, TypeError):
        return "error: the arguments must be numbers"
