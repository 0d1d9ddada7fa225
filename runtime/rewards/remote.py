"""Rewards of services over HTTP: one of your own, or a model that judges.

Calls run together in the processes of the reward, so nothing here blocks. How many run at once has a bound in each
process; waiting for a turn does not shorten the deadline of a request, but counts for `rollout.reward_timeout_s`.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING, Any

import msgspec
import regex

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.preparation import prepared_by
from verst.runtime.hooks.score import Score
from verst.runtime.rewards.arguments import typed
from verst.runtime.rewards.final import after_thought

if TYPE_CHECKING:
    import aiohttp

_AGAIN = frozenset(
    [408, 425, 429, 500, 502, 503, 504]
)  # answers of a service that is busy or away for a moment
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_MOST_BYTES = 1 << 20  # of a service's answer
_JUDGE = """Grade an answer. Reply with a short reason, and then a last line of the form "Score: N", where N is a \
number from 0 (wrong or useless) to 10 (perfect).

Question:
{prompt}

Reference, which may be empty:
{label}

Answer to grade:
{text}"""
_SEARCH_S = 1.0  # for a pattern that takes for ever on a hostile reply: meanwhile no other call goes on
_SCORE = r"(?im)^[^\w\n]*score\W*?[:=]\s*\**\s*(-?\d+(?:\.\d+)?)"


class ServiceError(RuntimeError):
    """A service did not answer as it should, after all attempts."""


def _check(*, url: str, seconds: float, retries: int, concurrency: int, **more: Any) -> None:
    if not re.match(r"https?://[^/\s]+", url):
        raise ValueError(f"url {url!r} must begin with http:// or https:// and a host")
    if not seconds > 0 or retries < 0 or concurrency < 1:
        raise ValueError("seconds must be above 0, retries 0 or more, concurrency 1 or more")


def _check_judge(*, template: str, pattern: str, scale: float, max_tokens: int, **more: Any) -> None:
    _check(**more)
    try:
        template.format(prompt="", label="", text="")
        if regex.compile(pattern).groups < 1:
            raise ValueError(f"pattern {pattern!r} needs a group for the number")
    except (KeyError, IndexError, AttributeError, regex.error) as error:
        raise ValueError(
            f"template or pattern: {error!r}; a template has {{prompt}}, {{label}} and {{text}}"
        ) from None
    if not scale > 0 or max_tokens < 1:
        raise ValueError("scale must be above 0, max_tokens 1 or more")


def _key_is_there(*, key_variable: str | None = None, **more: Any) -> None:
    if key_variable is not None and not os.environ.get(key_variable):
        raise ValueError(f"the environment variable {key_variable}, which key_variable names, is not set")


@prepared_by(_key_is_there)
@typed(_check)
async def remote(
    answer: Answer,
    *,
    url: str,
    seconds: float = 30.0,
    retries: int = 3,
    concurrency: int = 16,
    key_variable: str | None = None,
) -> Score:
    """What a service of yours says: it gets the `Answer` as JSON in a POST, and returns a number or an object.

    The object is `{"value": 0.8, "parts": {"name": 0.5}}`. Anything else, or a number that is not finite, is an error.

    Args:
        answer: the answer; the service gets all its fields.
        url: where to post it.
        seconds: the deadline of each request.
        retries: further attempts after a failed connection, a late answer, or a status such as 429 or 503.
        concurrency: most requests at once from each process of the reward.
        key_variable: an environment variable with a key, sent as `Authorization: Bearer …`. A recipe has none.
    """
    body = await _posted(url, msgspec.json.encode(answer), seconds, retries, concurrency, key_variable)
    try:
        return msgspec.json.decode(body, type=Score)
    except msgspec.DecodeError:
        pass
    try:
        return Score(msgspec.json.decode(body, type=float))
    except msgspec.DecodeError as error:
        shown = body[:200].decode(errors="replace")
        raise ServiceError(
            f"{url} returned {shown!r}, neither a number nor an object with value and parts"
        ) from error


@prepared_by(_key_is_there)
@typed(_check_judge)
async def judge(
    answer: Answer,
    *,
    url: str,
    model: str,
    template: str = _JUDGE,
    pattern: str = _SCORE,
    scale: float = 10.0,
    max_tokens: int = 1024,
    seconds: float = 60.0,
    retries: int = 3,
    concurrency: int = 16,
    key_variable: str | None = None,
) -> Score:
    """The grade, 0 to 1, that a model behind an OpenAI-compatible endpoint gives the response. Part: `unread`.

    `unread` is 1 if all attempts gave no grade that could be read; the value is then 0. The judge sees the response
    after `</think>`.

    Args:
        answer: the answer.
        url: of the endpoint, such as `http://judge:8000/v1`; the request goes to `/chat/completions` below it.
        model: the name of the model there.
        template: what the judge is asked, with `{prompt}`, `{label}` and `{text}`.
        pattern: a regular expression whose first group is the grade; its last match counts.
        scale: the grade that is worth 1. Grades below 0 and above it are not read.
        max_tokens: of the judge's reply.
        seconds: the deadline of each request.
        retries: further attempts after a failure of the service, or a reply without a grade.
        concurrency: most requests at once from each process of the reward.
        key_variable: an environment variable with a key, sent as `Authorization: Bearer …`.
    """
    text = after_thought(answer.text)
    asked = template.format(prompt=answer.prompt, label=answer.label, text=text)
    request = {
        "model": model,
        "messages": [{"role": "user", "content": asked}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    address = url.rstrip("/") + "/chat/completions"
    for _ in range(retries + 1):
        body = await _posted(
            address, msgspec.json.encode(request), seconds, retries, concurrency, key_variable
        )
        grade = _grade(address, body, pattern, scale)
        if grade is not None:
            return Score(grade / scale, {"unread": 0.0})
        request["temperature"] = 1  # the same question would get the same reply
    return Score(0.0, {"unread": 1.0})


def _grade(address: str, body: bytes, pattern: str, scale: float) -> float | None:
    try:
        said = msgspec.json.decode(body)["choices"][0]["message"]["content"] or ""
        found = regex.findall(pattern, after_thought(said)[-10_000:], timeout=_SEARCH_S)
    except TimeoutError:
        return None
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        shown = body[:200].decode(errors="replace")
        raise ServiceError(f"{address} returned {shown!r}, which is no chat completion") from error
    try:
        last = found[-1] if isinstance(found[-1], str) else found[-1][0]
        grade = float(last)
    except (IndexError, ValueError):
        return None
    return grade if 0 <= grade <= scale else None


async def _posted(
    url: str, body: bytes, seconds: float, retries: int, concurrency: int, key_variable: str | None
) -> bytes:
    """Posts JSON and returns the answer's body. Raises ServiceError after the last attempt."""
    import aiohttp

    headers = {"Content-Type": "application/json"}
    if key_variable is not None:
        headers["Authorization"] = f"Bearer {os.environ[key_variable]}"
    client = _client_of_loop(concurrency)
    deadline = aiohttp.ClientTimeout(total=seconds)
    problem, pause = "", _FIRST_PAUSE_S
    for attempt in range(retries + 1):
        if attempt:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        try:
            async with (
                client.free,
                client.session.post(url, data=body, headers=headers, timeout=deadline) as reply,
            ):
                data = await reply.content.read(_MOST_BYTES + 1)
                while len(data) <= _MOST_BYTES and (more := await reply.content.read(_MOST_BYTES)):
                    data += more
                status = reply.status
        except TimeoutError:
            problem = f"did not answer within {seconds:g} s"
            continue
        except aiohttp.ClientError as error:
            problem = f"could not be asked: {error}"
            continue
        if len(data) > _MOST_BYTES:
            raise ServiceError(f"{url} returned more than {_MOST_BYTES >> 20} MiB")
        if status == 200:
            return data
        problem = f"returned status {status}: {data[:200].decode(errors='replace')!r}"
        if status not in _AGAIN:
            break
    raise ServiceError(f"{url} {problem}")


class _Client:
    """The connections of this process, and the bound on how many requests run at once."""

    def __init__(self, session: aiohttp.ClientSession, concurrency: int) -> None:
        self.session = session
        self.free = asyncio.Semaphore(concurrency)


_clients: dict[tuple[asyncio.AbstractEventLoop, int], _Client] = {}


def _client_of_loop(concurrency: int) -> _Client:
    import aiohttp

    key = asyncio.get_running_loop(), concurrency
    if key not in _clients:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency), trust_env=True)
        _clients[key] = _Client(session, concurrency)
    return _clients[key]
