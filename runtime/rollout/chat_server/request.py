"""A chat request, whatever form it came in, and the refusal of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verst.runtime.data.chat import Message, chat_messages
from verst.runtime.data.records import DataError


class Refused(Exception):
    """A request that cannot be answered.

    `status` is the HTTP status, `param` the option at fault, and `code` OpenAI's word for it.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class ChatRequest:
    """What is asked: continue `messages`."""

    messages: list[Message]  # in OpenAI's form; each content is a string, or None beside tool calls
    tools: list[dict[str, Any]] = field(default_factory=list)  # in OpenAI's form
    sampling: dict[str, Any] = field(
        default_factory=dict
    )  # what replaces the recipe's: keys of `SamplingConfig`
    max_tokens: int | None = None
    model: str = ""


def known(body: Any, used: set[str], neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The options of a request. Raises Refused, with its name, for one that is neither used nor without effect.

    `neutral`: options that may be given with these values only, which change nothing. Null is always one.
    """
    if not isinstance(body, dict):
        raise Refused(400, "the request must be a JSON object")
    for name, value in body.items():
        if name in used or value is None:
            continue
        if name not in neutral:
            raise Refused(400, f"{name} is not supported here: leave it out", name, "unsupported_parameter")
        if value not in neutral[name]:
            allowed = " or ".join(json.dumps(v) for v in neutral[name])
            raise Refused(
                400,
                f"{name} is {json.dumps(value)[:200]}, of which only {allowed} is supported: leave it out",
                name,
                "unsupported_value",
            )
    return {name: value for name, value in body.items() if value is not None}


def read_messages(value: Any) -> list[Message]:
    """Chat messages in the form that templates take. Raises Refused."""
    try:
        messages = chat_messages(value if isinstance(value, list) else None, "messages")
    except DataError as error:
        raise Refused(400, str(error), "messages") from None
    if messages[-1]["role"] == "assistant":
        raise Refused(
            400,
            "the last message is the assistant's: there is nothing to answer",
            "messages",
            "unsupported_value",
        )
    return [with_parsed_arguments(message) for message in messages]


def number(options: Mapping[str, Any], name: str, kind: type, least: float, most: float) -> Any:
    """A number among the options, None if it is not there. Raises Refused."""
    value = options.get(name)
    if value is None:
        return None
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or (kind is int and value != int(value)):
        raise Refused(400, f"{name} is {value!r}; a number from {least:g} to {most:g} is needed", name)
    return kind(value)


def strings(options: Mapping[str, Any], name: str) -> list[str] | None:
    """A string or a list of strings among the options. Raises Refused."""
    value = options.get(name)
    found = [value] if isinstance(value, str) else value
    if found is not None and not (isinstance(found, list) and all(isinstance(s, str) and s for s in found)):
        raise Refused(400, f"{name} is {value!r}; a string or a list of strings is needed", name)
    return found


def sampling_of(options: Mapping[str, Any], stop: str) -> dict[str, Any]:
    """What replaces the recipe's sampling; `stop` is the form's name of the stop strings. Raises Refused."""
    found = {
        "temperature": number(options, "temperature", float, 0, 100),
        "top_p": number(options, "top_p", float, 1e-9, 1),
        "stop": strings(options, stop),
    }
    return {name: value for name, value in found.items() if value is not None}


def with_parsed_arguments(message: Message) -> Message:
    """Templates take the arguments of a tool call as an object, and OpenAI's form has them as a string of JSON."""
    calls = message.get("tool_calls")
    if calls is None:
        return message
    if not isinstance(calls, list) or not all(
        isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls
    ):
        raise Refused(400, "tool_calls must be a list of objects with a function", "messages")
    read = [
        {**call, "function": {**call["function"], "arguments": parsed(call["function"].get("arguments", ""))}}
        for call in calls
    ]
    return {**message, "tool_calls": read}


def as_object(arguments: Any) -> dict[str, Any]:
    """The arguments of a call as an object, which Anthropic's form needs, also if the model wrote something else."""
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def parsed(arguments: Any) -> Any:
    """The arguments of a call, parsed if they are JSON."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:  # the model may write what is no JSON
        return arguments
