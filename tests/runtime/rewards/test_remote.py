# ruff: noqa: E501
"""Rewards over HTTP against a real server: what it gets, and what each of its faults means."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.preparation import argument_fault, prepare
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.remote import ServiceError, judge, remote

module = sys.modules["verst.runtime.rewards.remote"]  # the package has a function of this name

ANSWER = Answer(
    text="<think>a</think>7", label="7", metadata={"row": 3}, prompt="3 + 4?", ids=[1, 2], turns=2
)


def asked(
    *replies: Any, calls: int = 1, reward: Any = remote, **arguments: Any
) -> tuple[list[Any], list[Any]]:
    """Calls a reward while a server gives the replies, one after another; returns values or errors, and the requests."""
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        reply = replies[min(len(seen), len(replies) - 1)]
        seen.append((request.path, request.headers.get("Authorization"), await request.json()))
        if callable(reply):
            return await reply(request)
        status, body = reply if isinstance(reply, tuple) else (200, reply)
        return web.Response(status=status, text=body if isinstance(body, str) else json.dumps(body))

    async def run() -> list[Any]:
        app = web.Application()
        app.router.add_post("/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/score"
        made = [reward(ANSWER, url=url, **arguments) for _ in range(calls)]
        found = await asyncio.gather(*made, return_exceptions=True)
        for client in module._clients.values():
            await client.session.close()
        module._clients.clear()
        await runner.cleanup()
        return found

    return asyncio.run(run()), seen


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)


def test_a_service_gets_the_answer_and_returns_a_number_or_a_score() -> None:
    (score,), seen = asked(0.5)
    assert score == Score(0.5)
    path, key, body = seen[0]
    assert (path, key) == ("/score", None)
    assert (body["text"], body["label"], body["metadata"], body["turns"]) == (ANSWER.text, "7", {"row": 3}, 2)
    (score,), _ = asked({"value": 1, "parts": {"a": 0.25}})
    assert score == Score(1.0, {"a": 0.25})


def test_a_busy_service_is_asked_again_and_a_faulty_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    (score,), seen = asked((503, ""), (429, ""), 1)
    assert (score, len(seen)) == (Score(1.0), 3)
    (error,), seen = asked((503, "busy"), retries=2)
    assert isinstance(error, ServiceError)
    assert len(seen) == 3
    assert str(error).endswith("returned status 503: 'busy'")
    (error,), seen = asked((400, "no"), retries=5)
    assert (len(seen), "status 400: 'no'" in str(error)) == (1, True)
    for reply in ("good", "null", '"1"', "[1]", '{"parts": {}}', ""):
        (error,), _ = asked((200, reply))
        assert "neither a number nor an object with value and parts" in str(error), reply
    (error,), _ = asked((200, "1" * (2 << 20)))
    assert "returned more than 1 MiB" in str(error)


def test_every_request_has_a_deadline_and_there_are_not_too_many_at_once() -> None:
    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(2)
        return web.Response()

    (error,), seen = asked(hang, seconds=0.1, retries=1)
    assert (len(seen), str(error).endswith("did not answer within 0.1 s")) == (2, True)
    running: list[int] = [0, 0]

    async def slow(request: web.Request) -> web.StreamResponse:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0.02)
        running[0] -= 1
        return web.Response(text="1")

    found, _ = asked(slow, calls=12, concurrency=3)
    assert found == [Score(1.0)] * 12
    assert running[1] == 3


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"url": "http://x", "key_variable": "VERST_TEST_KEY"}
    with pytest.raises(
        ValueError, match="the environment variable VERST_TEST_KEY, which key_variable names, is not set"
    ):
        prepare(remote, arguments)
    monkeypatch.setenv("VERST_TEST_KEY", "abc")
    prepare(remote, arguments)
    _, seen = asked(1, key_variable="VERST_TEST_KEY")
    assert seen[0][1] == "Bearer abc"


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}]}


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Good.\nScore: 8", 0.8), ("Score: 3\n**Score: 10**", 1.0), ("<think>Score: 1</think>score = 7.5", 0.75),
        ("Score: 0", 0.0),
    ],
)  # fmt: skip
def test_a_judge_grades(reply: str, grade: float) -> None:
    (score,), seen = asked(said(reply), reward=judge, model="big")
    assert score == Score(pytest.approx(grade), {"unread": 0.0})
    path, _, body = seen[0]
    assert (path, body["model"], body["temperature"]) == ("/score/chat/completions", "big", 0)
    asked_for = body["messages"][0]["content"]
    assert "Question:\n3 + 4?" in asked_for
    assert asked_for.endswith("Answer to grade:\n7")


def test_a_judge_whose_reply_cannot_be_read_is_asked_again_and_then_counted() -> None:
    (score,), seen = asked(said("Well."), said("Score: 11"), said("Score: 5"), reward=judge, model="big")
    assert (score.value, len(seen), seen[1][2]["temperature"]) == (0.5, 3, 1)
    (score,), seen = asked(said("Well."), reward=judge, model="big", retries=2)
    assert (score, len(seen)) == (Score(0.0, {"unread": 1.0}), 3)
    (error,), _ = asked({"error": "no such model"}, reward=judge, model="big")
    assert "which is no chat completion" in str(error)


@pytest.mark.parametrize(
    ("function", "arguments", "fault"),
    [
        (remote, {}, "'url'"), (remote, {"url": "host:80"}, "must begin with http://"),
        (remote, {"url": "http://x", "retries": -1}, "retries 0 or more"), (remote, {"url": "http://x", "key": "s"}, "'key'"),
        (judge, {"url": "http://x"}, "'model'"), (judge, {"url": "http://x", "model": "m", "template": "{text} {x}"}, "template"),
        (judge, {"url": "http://x", "model": "m", "pattern": "a"}, "needs a group"),
        (judge, {"url": "http://x", "model": "m", "pattern": "("}, "pattern"),
    ],
)  # fmt: skip
def test_arguments_are_checked_before_anything_runs(
    function: Callable[..., Awaitable[Score]], arguments: dict[str, Any], fault: str
) -> None:
    assert fault in str(argument_fault(function, arguments))
