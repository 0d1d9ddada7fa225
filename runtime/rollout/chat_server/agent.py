"""Runs the agent that a recipe names, against the episode's own chat server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.config import DataConfig
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.hook import Hook
from verst.runtime.rollout.chat_server.rendering import Rendering
from verst.runtime.rollout.chat_server.replies import Parsers
from verst.runtime.rollout.chat_server.server import ChatServer
from verst.runtime.rollout.chat_server.session import Divergence, Session
from verst.runtime.rollout.config import RolloutConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.generate import GenerateCall, Response


@dataclass(frozen=True, kw_only=True)
class AgentCall:
    """What an agent gets: `AsyncOpenAI(base_url=call.base_url, api_key=call.api_key)` talks to the policy."""

    base_url: str  # of OpenAI's clients, "http://127.0.0.1:PORT/v1"
    anthropic_base_url: str  # of Anthropic's clients, which add "/v1" themselves
    api_key: str  # of this episode
    prompt: str  # as rendered
    messages: list[dict[str, Any]]  # the same before it was rendered
    label: Any
    metadata: dict[str, Any]
    evaluation: bool
    group: int  # the prompt group, or the row of the held-out file
    index: int  # which of the group's episodes


class AgentHook(Hook):
    """The agent as a generate function: what was generated for its requests are the responses of the episode."""

    def __init__(
        self,
        path: str,
        server: ChatServer,
        parsers: Parsers,
        rendering_of: Callable[[GenerateCall], Rendering],
        *,
        timeout_s: float,
        divergence: Divergence = "new_sample",
    ) -> None:
        """Raises HookError if the function cannot be loaded or is not async."""
        super().__init__("agent", path, timeout_s=timeout_s, in_thread=False, passes=EngineError)
        if not self.is_async:
            raise HookError(f"agent {path!r} must be async: `async def`", kind="load")
        self._server, self._parsers, self._rendering_of = server, parsers, rendering_of
        self._divergence = divergence

    async def __call__[T](self, place: str, *arguments: Any, check: Callable[[Any], T]) -> T:
        """Runs the agent. Raises EngineError if the engine has failed, whatever the agent made of it; or HookError."""
        (call,) = arguments
        session = Session(call, self._rendering_of(call), self._parsers, self._divergence)
        try:
            return await super().__call__(place, session, check=check)
        except HookError as error:  # the agent raised, or went on until its deadline
            if session.error is not None:
                raise session.error from error
            raise

    async def _value(self, arguments: tuple[Any, ...]) -> list[Response]:
        (session,) = arguments
        key = self._server.open(session)
        try:
            score = await self._call(self._agent_call(session.call, key))
        finally:
            await self._server.close(key)
        if session.error is not None:
            raise session.error
        responses = session.responses()
        if not responses:
            raise ValueError("the agent ended without an answer to any request to `call.base_url`")
        responses[-1].score = score  # checked with the responses
        return responses

    def _agent_call(self, call: GenerateCall, key: str) -> AgentCall:
        return AgentCall(
            base_url=f"{self._server.url}/v1",
            anthropic_base_url=self._server.url,
            api_key=key,
            prompt=call.prompt.text,
            messages=[dict(message) for message in call.prompt.messages],
            label=call.prompt.label,
            metadata=call.prompt.metadata,
            evaluation=call.evaluation,
            group=call.group,
            index=call.index,
        )


def agent_hook(config: RolloutConfig, data: DataConfig, tokenizer: Any, server: ChatServer) -> AgentHook:
    """The agent of a recipe. Raises HookError if it cannot be loaded, or cannot talk to this model."""
    assert config.agent is not None
    try:
        renderings = {
            name: Rendering(ChatTemplate(source, tokenizer)) for name, source in data.train.by_name().items()
        }
        held_out = {
            name: Rendering(ChatTemplate(each, tokenizer))
            for name, each in data.eval_sets.items()
            if each.generate is None  # else the set has a generate function instead of the agent
        }
        parsers = Parsers(tokenizer, _named(config, "tool-call-parser"), _named(config, "reasoning-parser"))
    except ValueError as error:  # DataError is one
        raise HookError(f"agent {config.agent!r}: {error}", kind="load") from error

    def rendering_of(call: GenerateCall) -> Rendering:
        return held_out[call.set] if call.evaluation else renderings[call.prompt.source]

    return AgentHook(
        config.agent,
        server,
        parsers,
        rendering_of,
        timeout_s=config.generate_timeout_s,
        divergence=config.agent_divergence,
    )


def _named(config: RolloutConfig, argument: str) -> str | None:
    found = config.sglang.get(argument, config.sglang.get(argument.replace("-", "_")))
    return None if found is None else str(found)
