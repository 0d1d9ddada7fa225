"""The conversations of one episode, and which of them a request continues.

A request continues a conversation if its messages are those of the conversation, unchanged, and more. Then only the new
ones become tokens, and follow the tokens that were generated. Any other request begins a conversation of its own, which
becomes another sample of the episode: a first request, another agent's, or one whose earlier messages differ from what
was said (a *divergence*, which is counted, and refused if the recipe says so).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from verst.runtime.data.chat import Message
from verst.runtime.rollout.chat_server.openai_form import as_message
from verst.runtime.rollout.chat_server.rendering import Rendering
from verst.runtime.rollout.chat_server.replies import Parsers, Reply
from verst.runtime.rollout.chat_server.request import ChatRequest, Refused, as_object
from verst.runtime.rollout.config import SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.generate import Conversation, GenerateCall, Response

Divergence = Literal["new_sample", "refuse"]
_SEED_STEP = 0x9E3779B1  # between the seeds of an episode's conversations, whose prompts may be the same


@dataclass(eq=False)
class _Thread:
    """One conversation, and the messages that a request must have to continue it."""

    conversation: Conversation
    messages: list[Message]
    tools: list[dict[str, Any]]
    asked: int  # how many of the messages the first request had
    busy: bool = False
    turns: int = 0


@dataclass
class Counts:
    """What is reported of an episode."""

    requests: int = 0
    divergences: int = 0  # requests whose earlier messages differ from what was said
    template_differs: int = 0  # turns where the whole chat, rendered anew, has other tokens than those kept

    def figures(self) -> dict[str, int]:
        """The figures, by the names under which a step reports them."""
        return {
            "agent_turns": self.requests,
            "agent_divergences": self.divergences,
            "agent_template_differs": self.template_differs,
        }


@dataclass(eq=False)
class Session:
    """One episode."""

    call: GenerateCall
    rendering: Rendering
    parsers: Parsers
    divergence: Divergence = "new_sample"
    counts: Counts = field(default_factory=Counts)
    error: EngineError | None = None  # the first of the engine: the episode must be made again
    _threads: list[_Thread] = field(default_factory=list)
    _running: set[asyncio.Task[Reply]] = field(default_factory=set)
    _begun: int = 0  # conversations, those without a turn included
    _closed: bool = False

    async def answer(self, request: ChatRequest) -> Reply:
        """Generates the next turn. Raises Refused, and EngineError."""
        if self._closed:
            raise Refused(410, "this episode is over", code="episode_over")
        if self.error is not None:
            raise self.error
        task = asyncio.create_task(self._answer(request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await task
        except EngineError as error:
            self.error = self.error or error
            raise
        finally:
            task.cancel()  # the client has gone

    async def close(self) -> None:
        """Ends what is still being generated."""
        self._closed = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def responses(self) -> list[Response]:
        """One for each conversation with a turn; the last is that which was continued last."""
        made = []
        for thread in sorted((t for t in self._threads if t.turns), key=lambda thread: thread.turns):
            response = thread.conversation.response()
            response.messages = thread.messages
            made.append(response)
        if made:
            made[-1].metadata = {"figures": self.counts.figures()}
        return made

    async def _answer(self, request: ChatRequest) -> Reply:
        sampling = self._sampling(request)
        self.parsers.check_tools(request.tools)
        thread = self._thread_of(request)
        thread.busy = True
        try:
            return await self._turn(thread, request, sampling)
        finally:
            thread.busy = False
            if not thread.turns:
                self._threads.remove(thread)  # nothing was said

    async def _turn(self, thread: _Thread, request: ChatRequest, sampling: SamplingConfig) -> Reply:
        talk = thread.conversation
        differs = False
        try:
            if thread.turns:
                new = request.messages[len(thread.messages) :]
                talk.add(self.rendering.following(talk.ids, new, thread.tools))
                differs = self.rendering.differs(talk.ids, request.messages, thread.tools)
            before = len(talk.ids)
            turn = await talk.generate(sampling)
        finally:
            talk.drop_added()  # which a turn has made part of the conversation
        if turn.finish == "abort":
            raise EngineError("the engine aborted a turn")
        if not len(turn.ids):
            raise _full(before)
        self.counts.requests += 1
        self.counts.template_differs += differs
        thread.turns = self.counts.requests
        reply = self._reply(turn.ids.tolist(), turn.finish, before, request, sampling)
        thread.messages = [*request.messages, as_message(reply)]
        return reply

    def _reply(
        self, ids: list[int], finish: Any, before: int, request: ChatRequest, sampling: SamplingConfig
    ) -> Reply:
        ends = self.rendering.ends if finish == "stop" else set()
        whole = bool(request.tools) or self.parsers.reads_reasoning
        written = self.parsers.text_of(ids, ends, sampling.stop, whole=whole)
        text, reasoning, calls = self.parsers.parsed(written, request.tools)
        return Reply(text, finish, before, len(ids), calls, reasoning)

    def _thread_of(self, request: ChatRequest) -> _Thread:
        """The conversation that the request continues, or a new one. Raises Refused."""
        asked = _comparable(request.messages)
        diverges = False
        for thread in sorted(self._threads, key=lambda thread: -len(thread.messages)):
            said = _comparable(thread.messages)
            same_tools = thread.tools == request.tools
            continues = len(asked) > len(said) and asked[: len(said)] == said and same_tools
            if continues and thread.turns and not thread.busy:
                return thread
            diverges |= asked[: thread.asked] == said[: thread.asked]
        if diverges:
            self.counts.divergences += 1
            if self.divergence == "refuse":
                raise Refused(
                    400,
                    "the earlier messages differ from what was said in this episode, and rollout.agent_divergence is "
                    "`refuse`",
                    "messages",
                    "divergence",
                )
        ids = self.rendering.prompt(request.messages, request.tools)
        limit = self.call.longest_input
        if limit is not None and len(ids) > limit:
            raise _full(len(ids))
        seed = self.call.seed
        if seed is not None and self._begun:
            seed = (seed + self._begun * _SEED_STEP) % (1 << 31)
        self._begun += 1
        own = None if ids == self.call.prompt.ids else ids
        talk = Conversation(replace(self.call, seed=seed), own)
        thread = _Thread(talk, list(request.messages), request.tools, len(request.messages))
        self._threads.append(thread)
        return thread

    def _sampling(self, request: ChatRequest) -> SamplingConfig:
        """The recipe's sampling with what the request replaces. Raises Refused for what cannot be trained on."""
        usual = self.call.sampling
        own = dict(request.sampling)
        own["max_new_tokens"] = min(request.max_tokens or usual.max_new_tokens, usual.max_new_tokens)
        own["stop"] = [*usual.stop, *own.get("stop", [])]
        used = usual.model_copy(update=own)
        if self.call.evaluation:
            return used
        if used.greedy:
            raise Refused(
                400,
                f"temperature is {used.temperature:g}: greedy tokens have no policy gradient; leave it out in training",
                "temperature",
                "unsupported_value",
            )
        for name in used.truncations:
            raise Refused(
                400,
                f"{name} is {getattr(used, name):g}: the engine reports log-probabilities of the whole distribution; "
                "leave it out in training",
                name,
                "unsupported_value",
            )
        return used


def _full(tokens: int) -> Refused:
    return Refused(
        400,
        f"the conversation has {tokens} tokens, which leaves no room for an answer",
        "messages",
        "context_length_exceeded",
    )


def _comparable(messages: list[Message]) -> list[str]:
    """Messages as they are compared: what clients leave out or write otherwise without a change of meaning is alike.

    Those are empty contents and lists, reasoning (which clients do not send back), the white space in the JSON of
    arguments, which is parsed already, and the object that Anthropic's form makes of arguments that are none.
    """
    return [_one(message) for message in messages]


def _one(message: Message) -> str:
    kept = {"role": message["role"], "content": message.get("content") or ""}
    for name in ("name", "tool_call_id"):
        if message.get(name):
            kept[name] = message[name]
    if calls := message.get("tool_calls"):
        kept["tool_calls"] = [
            [call.get("id"), call["function"].get("name"), as_object(call["function"].get("arguments"))]
            for call in calls
        ]
    return json.dumps(kept, sort_keys=True, default=str)
