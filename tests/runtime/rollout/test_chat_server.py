"""What an agent's chat requests generate is what is trained, token by token; what is unsupported is refused by name."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import numpy as np
import openai
import psutil
import pytest
import torch

import examples.agent
from tests.runtime.rollout import tiny_models
from tests.runtime.rollout.engine.test_families import weights_of
from tests.runtime.rollout.weight_source import WeightSource
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.config import DataConfig, PromptFileConfig
from verst.runtime.data.models import character_tokenizer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.score import Score
from verst.runtime.messages.jobs import Prompt
from verst.runtime.rollout.chat_server import anthropic_form, openai_form
from verst.runtime.rollout.chat_server import server as server_module
from verst.runtime.rollout.chat_server.agent import AgentCall, AgentHook, agent_hook
from verst.runtime.rollout.chat_server.openai_form import as_message
from verst.runtime.rollout.chat_server.rendering import Rendering
from verst.runtime.rollout.chat_server.replies import Parsers
from verst.runtime.rollout.chat_server.request import ChatRequest, Refused
from verst.runtime.rollout.chat_server.server import ChatServer
from verst.runtime.rollout.chat_server.session import Session
from verst.runtime.rollout.config import RolloutConfig, SamplingConfig
from verst.runtime.rollout.engine.client import EngineError
from verst.runtime.rollout.engine.engine import Engine, Generation
from verst.runtime.rollout.generate import GenerateCall, Response
from verst.runtime.rollout.sample_check import are_responses

TEMPLATE = (
    "{% if tools %}<|start|>tools{% for t in tools %} {{ t.function.name }}{% endfor %}<|end|> {% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}: {{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %} calls {{ c.function.name }}{% endfor %}<|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)
# A random model of 64 tokens makes these often, because each is a token of its own.
CALLS = [f'<tool_call>\n{{"name": "add", "arguments": {{"a": {a}, "b": 2}}}}\n</tool_call>' for a in range(4)]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}
SAMPLING = SamplingConfig(max_new_tokens=12)


def make_tokenizer() -> Any:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens(CALLS)
    return tokenizer


TOKENIZER = make_tokenizer()
RENDERING = Rendering(ChatTemplate(PromptFileConfig(path="-"), TOKENIZER))
ASKED = [{"role": "user", "content": "1 + 2 =?"}]


class Recording:
    """The engine, and every request that it got with what it returned."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.turns: list[tuple[list[int], Generation]] = []

    @property
    def version(self) -> int:
        return self._engine.version

    async def generate(self, ids: list[int], sampling: SamplingConfig, seed: int | None) -> Generation:
        asked = list(ids)
        turn = await self._engine.generate(ids, sampling, seed)
        self.turns.append((asked, turn))
        return turn


AGENT: Any = None


async def agent(call: AgentCall) -> Any:
    return await AGENT(call)


def plain(call: AgentCall) -> None:
    return None


def call_of(engine: Any, seed: int = 3, **more: Any) -> GenerateCall:
    prompt = Prompt(ids=RENDERING.prompt(ASKED, []), text="?", label="3", metadata={"row": 1}, messages=ASKED)
    return GenerateCall(
        engine=engine, prompt=prompt, sampling=SAMPLING, seed=seed, tokenizer=TOKENIZER, **more
    )


class Agents:
    """Runs agents one by one or together, each against a chat server of its own."""

    def __init__(self, engine: Engine, run: Any) -> None:
        self.engine, self.run = engine, run

    def episodes(
        self,
        agent: Any,
        count: int = 1,
        within_s: float = 200,
        divergence: Any = "new_sample",
        recording: type[Recording] = Recording,
        **more: Any,
    ) -> tuple[list[list[Response]], list[Recording]]:
        global AGENT
        AGENT = agent
        recordings = [recording(self.engine) for _ in range(count)]

        async def all_of_them() -> list[list[Response]]:
            async with ChatServer() as server:
                hook = AgentHook(
                    f"{__name__}:agent",
                    server,
                    Parsers(TOKENIZER, "qwen25", None),
                    lambda call: RENDERING,
                    timeout_s=within_s,
                    divergence=divergence,
                )
                calls = [call_of(r, seed=seed, **more) for seed, r in enumerate(recordings)]
                return await asyncio.gather(
                    *(hook(f"sample {n}", call, check=are_responses) for n, call in enumerate(calls))
                )

        return self.run(all_of_them(), within_s=within_s + 10), recordings


@pytest.fixture(scope="module")
def agents(engine_of: Callable[..., Engine], run: Any) -> Agents:
    return Agents(engine_of("qwen3_moe"), run)


def client_of(call: AgentCall) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=call.base_url, api_key=call.api_key, max_retries=0, timeout=120)


def trained_is_generated(responses: list[Response], turns: list[tuple[list[int], Generation]]) -> None:
    """Each turn is in a response where it was generated, after what the engine got; nothing else is trained."""
    trained = 0
    for asked, turn in turns:
        places = []
        for response in responses:
            prompt = response.prompt_ids or call_of(None).prompt.ids
            whole = [*prompt, *response.ids.tolist()]
            end = len(asked) + len(turn.ids)
            if len(asked) >= len(prompt) and whole[:end] == [*asked, *turn.ids.tolist()]:
                places.append((response, slice(len(asked) - len(prompt), end - len(prompt))))
        ((response, place),) = places
        assert response.loss_mask[place].all()
        np.testing.assert_array_equal(response.logprobs[place], turn.logprobs)
        np.testing.assert_array_equal(response.weight_versions[place], turn.weight_versions)
        trained += len(turn.ids)
    assert trained == sum(int(response.loss_mask.sum()) for response in responses)


def talking(turns: int) -> Any:
    """An agent that calls the tools that the model asks for, and otherwise says something, for so many turns."""

    async def talk(call: AgentCall) -> float:
        messages: list[Any] = list(call.messages)
        called = 0
        async with client_of(call) as client:
            for turn in range(turns):
                made = await client.chat.completions.create(model="policy", messages=messages, tools=[TOOL])
                message = made.choices[0].message
                # As frameworks send it back: dumped, without what is null.
                messages.append(message.model_dump(exclude_none=True))
                for tool_call in message.tool_calls or []:
                    arguments = json.loads(tool_call.function.arguments)
                    called += 1
                    content = str(arguments["a"] + arguments["b"])
                    messages.append({"role": "tool", "tool_call_id": tool_call.id, "content": content})
                if not message.tool_calls:
                    messages.append({"role": "user", "content": f"and {turn} + {call.index}?"})
        return float(called)

    return talk


def test_what_is_generated_is_what_is_trained(agents: Agents) -> None:
    episodes, recordings = agents.episodes(talking(4), count=12)
    for responses, recording in zip(episodes, recordings, strict=True):
        (response,) = responses
        assert response.turns == len(recording.turns) == 4
        trained_is_generated(responses, recording.turns)
        figures = response.metadata["figures"]
        assert (figures["agent_turns"], figures["agent_divergences"]) == (4, 0)
        assert [m["role"] for m in response.messages].count("assistant") == 4
    assert sum(r[0].score for r in episodes) > 0, "some turn called a tool, by SGLang's parser"
    texts = [TOKENIZER.decode(r[0].ids) for r in episodes]
    assert any("<|start|>tool: " in text for text in texts)


def test_only_new_messages_are_rendered_and_follow_what_was_generated(agents: Agents) -> None:
    async def two(call: AgentCall) -> None:
        async with client_of(call) as client:
            first = await client.chat.completions.create(model="", messages=call.messages, max_tokens=3)
            said = {"role": "assistant", "content": first.choices[0].message.content}
            more = {"role": "user", "content": [{"type": "text", "text": "go on"}]}
            await client.chat.completions.create(model="", messages=[*call.messages, said, more])

    ((response,),), (recording,) = agents.episodes(two)
    (prompt, first), (second_asked, _) = recording.turns
    ended = first.ids[-1] == TOKENIZER.eos_token_id
    added = ("" if ended else "<|end|>") + " <|start|>user: go on<|end|> <|start|>assistant: "
    assert prompt == call_of(None).prompt.ids
    assert second_asked == [*prompt, *first.ids, *TOKENIZER(added)["input_ids"]]
    assert response.prompt_ids is None
    assert response.score is None


@pytest.mark.parametrize("how", ["edited", "shorter", "other tools"])
def test_another_history_is_another_sample_or_refused(agents: Agents, how: str) -> None:
    async def edits(call: AgentCall) -> Score:
        async with client_of(call) as client:
            await client.chat.completions.create(model="", messages=call.messages)
            said = {"role": "assistant", "content": "another answer"}
            more = [*call.messages, said, {"role": "user", "content": "why?"}]
            history = {"edited": more, "shorter": call.messages, "other tools": more}[how]
            tools = [TOOL] if how == "other tools" else openai.NOT_GIVEN
            await client.chat.completions.create(model="", messages=history, tools=tools)
        return Score(0.5, {"good": 1.0})

    (responses,), (recording,) = agents.episodes(edits)
    assert len(responses) == 2
    trained_is_generated(responses, recording.turns)
    assert responses[-1].metadata["figures"]["agent_divergences"] == 1
    assert responses[-1].score == Score(0.5, {"good": 1.0})
    with pytest.raises(HookError, match=r"BadRequestError: .*the earlier messages differ from what was said"):
        agents.episodes(edits, divergence="refuse")


def test_two_agents_in_an_episode_are_two_samples_without_divergence(agents: Agents) -> None:
    async def pair(call: AgentCall) -> None:
        async with client_of(call) as client:
            ask = client.chat.completions.create
            other = [{"role": "system", "content": "you check"}, {"role": "user", "content": "is it 3?"}]
            await asyncio.gather(ask(model="", messages=call.messages), ask(model="", messages=other))

    (responses,), (recording,) = agents.episodes(pair)
    assert len(responses) == 2
    trained_is_generated(responses, recording.turns)
    assert responses[-1].metadata["figures"]["agent_divergences"] == 0


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stream": ({"stream": True}, "stream is true, of which only false is supported"),
    "n": ({"n": 2}, "n is 2, of which only 1 is supported"),
    "seed": ({"seed": 1}, "seed is not supported here: leave it out"),
    "logit_bias": ({"logit_bias": {"5": 1}}, "logit_bias is not supported here"),
    "tool_choice": (
        {"tools": [TOOL], "tool_choice": "required"},
        'tool_choice is "required", of which only "auto"',
    ),
    "response_format": ({"response_format": {"type": "json_object"}}, "response_format is"),
    "temperature": ({"temperature": 0}, "temperature is 0: greedy tokens have no policy gradient"),
    "top_p": ({"top_p": 0.5}, "top_p is 0.5: the engine reports log-probabilities of the whole"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens is 0; a number from 1"),
    "messages": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
    "role": ({"messages": [*ASKED, {"role": "assistant", "content": "3"}]}, "there is nothing to answer"),
    "extra": ({"extra_body": {"top_k": 5}}, "top_k is not supported here"),
}


def test_what_is_not_supported_is_refused_by_name_in_openais_form(agents: Agents) -> None:
    found = {}

    async def asks(call: AgentCall) -> None:
        async with client_of(call) as client:
            for name, (options, _) in REFUSED.items():
                with pytest.raises(openai.BadRequestError) as caught:
                    await client.chat.completions.create(
                        **{"model": "", "messages": call.messages, **options}
                    )
                found[name] = caught.value.body
            with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings is not served here"):
                await client.embeddings.create(model="", input="a")
            with pytest.raises(openai.AuthenticationError, match="no episode has this API key"):
                await client.with_options(api_key="guess").chat.completions.create(
                    model="", messages=call.messages
                )
            await client.chat.completions.create(model="", messages=call.messages, temperature=0.7, n=1)

    ((response,),), _ = agents.episodes(asks)
    for name, (_, told) in REFUSED.items():
        assert told in found[name]["message"], name
        assert found[name]["type"] == "invalid_request_error"
    assert found["seed"]["param"] == "seed"
    assert found["seed"]["code"] == "unsupported_parameter"
    np.testing.assert_array_equal(response.signals["temperature"], np.float32(0.7) * response.loss_mask)


def test_a_conversation_that_is_full_is_told_as_openai_does(agents: Agents) -> None:
    async def fills(call: AgentCall) -> None:
        async with client_of(call) as client:
            messages: list[Any] = list(call.messages)
            with contextlib.suppress(openai.BadRequestError):
                for _ in range(50):
                    made = await client.chat.completions.create(model="", messages=messages)
                    said = {"role": "assistant", "content": made.choices[0].message.content}
                    messages += [said, {"role": "user", "content": "go on"}]
            with pytest.raises(openai.BadRequestError, match="leaves no room") as caught:
                await client.chat.completions.create(model="", messages=messages)
            assert caught.value.code == "context_length_exceeded"

    for limits in ({"longest_sample": 150}, {"longest_sample": 150, "longest_input": 120}):
        ((response,),), (recording,) = agents.episodes(fills, **limits)
        trained_is_generated([response], recording.turns)
        assert len(call_of(None).prompt.ids) + len(response.ids) <= 150
        assert response.finish == "length", "it was cut off, even if the last turn ended by itself"


def test_two_requests_at_once_that_continue_one_conversation(agents: Agents) -> None:
    """One goes on with it, and the other begins a sample with the same history."""

    async def branches(call: AgentCall) -> None:
        async with client_of(call) as client:
            first = await client.chat.completions.create(model="", messages=call.messages)
            said = first.choices[0].message.model_dump(exclude_none=True)
            more = [*call.messages, said, {"role": "user", "content": "why?"}]
            await asyncio.gather(*(client.chat.completions.create(model="", messages=more) for _ in range(2)))

    (responses,), (recording,) = agents.episodes(branches)
    assert sorted(response.turns for response in responses) == [1, 2]
    trained_is_generated(responses, recording.turns)
    assert responses[-1].metadata["figures"]["agent_divergences"] == 1


def session_of(engine: Any, rendering: Rendering = RENDERING, tokenizer: Any = TOKENIZER) -> Session:
    return Session(call_of(engine), rendering, Parsers(tokenizer, "qwen25", None))


class Writing:
    """Stands for an engine: each turn is one of these texts."""

    version = 0

    def __init__(self, *texts: str, tokenizer: Any = TOKENIZER) -> None:
        self.texts = [tokenizer(text)["input_ids"] for text in texts]
        self.seeds: list[int | None] = []

    async def generate(self, ids: list[int], sampling: SamplingConfig, seed: int | None) -> Generation:
        self.seeds.append(seed)
        made = np.array(self.texts.pop(0), np.int32)
        nothing = np.zeros(len(made), np.float32)
        versions = np.zeros(len(made), np.int32)
        return Generation(
            ids=made, logprobs=nothing, weight_versions=versions, finish="stop", routing=None,
            prompt_tokens=len(ids), cached_tokens=0, seconds=0.0,
        )  # fmt: skip


def test_a_figure_does_not_refuse_a_chat_that_the_template_would_not_render_whole() -> None:
    """Llama's takes one call in a turn; the model may write two, and its tokens are kept as they are."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.tool_calls or []) | length > 1 %}{{ raise_exception('one at a time') }}"
        "{% endif %}{% endfor %}" + TEMPLATE
    )
    rendering = Rendering(ChatTemplate(PromptFileConfig(path="-"), tokenizer))
    session = session_of(Writing(CALLS[0] + "\n" + CALLS[1] + "<|end|>", "3<|end|>"), rendering)

    async def two() -> None:
        first = await session.answer(ChatRequest(ASKED, [TOOL]))
        assert len(first.calls) == 2
        results = [{"role": "tool", "tool_call_id": call.id, "content": "3"} for call in first.calls]
        await session.answer(ChatRequest([*ASKED, as_message(first), *results], [TOOL]))

    asyncio.run(two())
    assert session.counts.figures() == {
        "agent_turns": 2, "agent_divergences": 0, "agent_template_differs": 1,
    }  # fmt: skip


def test_arguments_that_are_no_object_come_back_from_anthropics_clients_without_a_divergence() -> None:
    tokenizer = make_tokenizer()
    odd = '<tool_call>\n{"name": "add", "arguments": [1, 2]}\n</tool_call>'
    tokenizer.add_tokens([odd])
    session = session_of(Writing(f"{odd}<|end|>", "3<|end|>", tokenizer=tokenizer), tokenizer=tokenizer)
    tools = [{"name": "add", "input_schema": TOOL["function"]["parameters"]}]

    def asking(*messages: Any) -> ChatRequest:
        return anthropic_form.read({"messages": [*ASKED, *messages], "max_tokens": 9, "tools": tools})

    async def two() -> None:
        said = anthropic_form.write(await session.answer(asking()), "")["content"]
        assert said[-1]["input"] == {"arguments": [1, 2]}
        result = {"type": "tool_result", "tool_use_id": said[-1]["id"], "content": "3"}
        await session.answer(
            asking({"role": "assistant", "content": said}, {"role": "user", "content": [result]})
        )

    asyncio.run(two())
    assert len(session.responses()) == 1
    assert session.counts.divergences == 0


def test_conversations_of_an_episode_have_different_seeds() -> None:
    engine = Writing("a", "", "b", "c")  # the second comes to nothing, which leaves no conversation
    session = session_of(engine)

    async def four() -> None:
        for _ in range(4):
            with contextlib.suppress(Refused):
                await session.answer(ChatRequest(ASKED))

    asyncio.run(four())
    assert len(set(engine.seeds)) == 4
    assert len(session.responses()) == 3


def test_tools_that_the_parser_does_not_take_are_refused_before_anything_is_generated() -> None:
    function = {**TOOL["function"], "description": 5}
    engine = Writing("a")
    with pytest.raises(Refused, match="tools: "):
        asyncio.run(
            session_of(engine).answer(ChatRequest(ASKED, [{"type": "function", "function": function}]))
        )
    assert engine.seeds == []
    for form, tools in ((openai_form, 5), (anthropic_form, 5), (anthropic_form, [TOOL])):
        with pytest.raises(Refused, match="tools must be a list"):
            form.read({"messages": ASKED, "max_tokens": 1, "tools": tools})


def test_a_client_that_never_finishes_its_request_is_let_go(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_READ_S", 0.5)

    async def half(call: AgentCall) -> None:
        port = int(call.base_url.rpartition(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/messages HTTP/1.1\r\nHost: a\r\nx-api-key: {call.api_key}\r\nContent-Length: 99\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(30):
            told = (await reader.read()).decode()  # until the server closes the connection
        writer.close()
        assert told.startswith("HTTP/1.1 408")
        assert "was not there whole after 0.5 s" in told
        await talking(1)(call)

    agents.episodes(half)


def test_an_agent_that_closes_no_client_leaves_no_connection(agents: Agents) -> None:
    clients = []

    async def careless(call: AgentCall) -> None:
        clients.append(client_of(call))
        await clients[-1].chat.completions.create(model="", messages=call.messages)
        await asyncio.sleep(0.2)
        port = int(call.base_url.rpartition(":")[2].partition("/")[0])
        open_ = [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port]
        assert [c.status for c in open_ if c.status != "TIME_WAIT"] == []

    agents.episodes(careless)


def test_an_agent_that_hangs_is_ended_with_what_is_generated_for_it(agents: Agents) -> None:
    stopped = asyncio.Event()

    class Slow(Recording):
        async def generate(self, *arguments: Any) -> Generation:
            try:
                return await asyncio.sleep(600)  # type: ignore[return-value]
            finally:
                stopped.set()

    with pytest.raises(HookError, match=r"no value after 1 s \(.+, in talk\)"):
        agents.episodes(talking(1), within_s=1, recording=Slow)
    assert stopped.is_set()


def test_an_agent_that_keeps_trying_a_failed_engine_is_the_engines_fault(agents: Agents) -> None:
    asked = 0

    class Failing(Recording):
        async def generate(self, *arguments: Any) -> Generation:
            nonlocal asked
            asked += 1
            raise EngineError("engine: /generate was refused")

    async def stubborn(call: AgentCall) -> None:
        while True:
            with contextlib.suppress(openai.APIStatusError):
                await talking(1)(call)
            await asyncio.sleep(0.1)

    with pytest.raises(EngineError, match="/generate was refused"):
        agents.episodes(stubborn, within_s=2, recording=Failing)
    assert asked == 1, "the episode is made again: nothing more is generated for it"


def test_the_example_of_an_agent(agents: Agents) -> None:
    episodes, recordings = agents.episodes(examples.agent.adds, count=12)
    for responses, recording in zip(episodes, recordings, strict=True):
        assert len(responses) == 1
        trained_is_generated(responses, recording.turns)
    told = [m["content"] for r in episodes for m in r[0].messages if m["role"] == "tool"]
    assert told
    assert set(told) <= {"2", "3", "4", "5"}


def test_an_evaluation_set_without_a_chat_template_needs_a_generate_function_of_its_own(
    tmp_path: Path,
) -> None:
    def of(**own: Any) -> AgentHook:
        data = DataConfig.model_validate(
            {"train": {"path": "a.jsonl"}, "eval": {"path": "b.jsonl", "chat_template": False, **own}}
        )
        config = RolloutConfig(reward="unused:here", agent=f"{__name__}:agent")
        return agent_hook(config, data, TOKENIZER, ChatServer())

    of(generate="verst.runtime.rollout.generate:single_turn")
    with pytest.raises(HookError, match="chat_template is false: an agent's messages need the chat template"):
        of()


def test_anthropics_form(agents: Agents) -> None:
    tool = {"name": "add", "input_schema": TOOL["function"]["parameters"]}

    async def talk(call: AgentCall) -> None:
        async with anthropic.AsyncAnthropic(
            base_url=call.anthropic_base_url, api_key=call.api_key, max_retries=0
        ) as client:
            messages: list[Any] = list(call.messages)
            for _ in range(6):
                made = await client.messages.create(
                    model="policy", max_tokens=12, messages=messages, tools=[tool], system="add"
                )
                messages.append(
                    {"role": "assistant", "content": [b.model_dump() for b in made.content] or ""}
                )
                results = [
                    {"type": "tool_result", "tool_use_id": block.id, "content": "3"}
                    for block in made.content
                    if block.type == "tool_use"
                ]
                messages.append({"role": "user", "content": results or "and?"})
            with pytest.raises(anthropic.BadRequestError, match="top_k is not supported here") as caught:
                await client.messages.create(
                    model="", max_tokens=1, messages=messages, extra_body={"top_k": 3}
                )
            assert caught.value.body["type"] == "error"

    episodes, recordings = agents.episodes(talk, count=4)
    for responses, recording in zip(episodes, recordings, strict=True):
        assert len(responses) == 1
        assert responses[0].turns == 6
        trained_is_generated(responses, recording.turns)
    said = [m for r in episodes for m in r[0].messages]
    assert any(m.get("tool_calls") for m in said)


def test_an_agent_that_fails_is_told_and_an_engine_that_fails_is_the_engines(agents: Agents) -> None:
    async def silent(call: AgentCall) -> None:
        return None

    async def wrong(call: AgentCall) -> str:
        await talking(1)(call)
        return "good"

    async def raises(call: AgentCall) -> None:
        raise KeyError("tool")

    for agent_, told in (
        (silent, "the agent ended without an answer to any request"),
        (wrong, "returned 'good', not a finite number"),
        (raises, "raised KeyError: 'tool'"),
    ):
        with pytest.raises(HookError, match=f"agent '{__name__}:agent', sample 0: .*{told}"):
            agents.episodes(agent_)

    class Refusing(Recording):
        async def generate(self, *arguments: Any) -> Generation:
            raise EngineError("engine: /generate was refused")

    with pytest.raises(EngineError, match="/generate was refused"):
        agents.episodes(talking(1), recording=Refusing)
    with pytest.raises(HookError, match="must be async"):
        AgentHook(
            f"{__name__}:plain",
            ChatServer(),
            Parsers(TOKENIZER, None, None),
            lambda c: RENDERING,
            timeout_s=1,
        )
    with pytest.raises(ValueError, match="Unsupported tool_call_parser"):
        Parsers(TOKENIZER, "nobody", None)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_thousand_conversations_with_tools_while_weights_are_updated(agents: Agents) -> None:
    engine, stop = agents.engine, asyncio.Event()
    model = tiny_models.build("qwen3_moe")
    first = engine.version

    async def update() -> int:
        source = await WeightSource.connect(engine)
        version = first
        try:
            while not stop.is_set():
                version += 1
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1.0 + 1e-3 * (-1) ** version)
                await engine.pause("in_place")
                await source.send(weights_of(model), version)
                await engine.resume()
                await asyncio.sleep(2)
        finally:
            await source.close()
        return version - first

    updating = asyncio.run_coroutine_threadsafe(update(), agents.run(_loop()))
    made, spanning = 0, 0
    try:
        while made < 1000:
            episodes, recordings = agents.episodes(talking(4), count=50, within_s=600)
            for responses, recording in zip(episodes, recordings, strict=True):
                assert len(responses) == 1
                trained_is_generated(responses, recording.turns)
                spanning += len(set(responses[0].weight_versions.tolist())) > 1
            made += len(episodes)
    finally:
        stop.set()
    updates = updating.result(timeout=120)
    called = sum(bool(m.get("tool_calls")) for r in episodes for m in r[0].messages)
    print(f"{made} conversations, {updates} updates, {spanning} conversations over several versions")
    assert updates > 3
    assert spanning > 10
    assert called > 0


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
