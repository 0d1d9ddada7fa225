"""The HTTP server of a rollout worker's episodes: on loopback, with a key for each episode."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from types import ModuleType
from typing import Any, Self

from aiohttp import web

from verst.runtime.rollout.chat_server import anthropic_form, openai_form
from verst.runtime.rollout.chat_server.request import Refused
from verst.runtime.rollout.chat_server.session import Session
from verst.runtime.rollout.engine.client import EngineError

log = logging.getLogger(__name__)
_HOST = "127.0.0.1"
_MOST_BYTES = 64 << 20  # of a request
_READ_S = 60.0  # for a request's body to arrive
_STOP_S = 5.0


class ChatServer:
    """Use it with `async with`, in the event loop of the engine."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=_MOST_BYTES)
        app.router.add_post("/v1/chat/completions", self._answering(openai_form))
        app.router.add_post("/v1/messages", self._answering(anthropic_form))
        app.router.add_route("*", "/{path:.*}", _unknown)
        # When a client goes, what it asked for is not generated to the end.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_STOP_S
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, _HOST, 0)
        await site.start()
        self.url = f"http://{_HOST}:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def open(self, session: Session) -> str:
        """Serves an episode. Returns its key."""
        key = secrets.token_urlsafe(32)
        self._sessions[key] = session
        return key

    async def close(self, key: str) -> None:
        """Ends the serving of an episode, and what is still being generated for it."""
        await self._sessions.pop(key).close()

    def _answering(self, form: ModuleType) -> Callable[[web.Request], Any]:
        async def answer(request: web.Request) -> web.Response:
            try:
                session = self._session_of(request)
                asked = form.read(await _body(request))
                return _json(form.write(await session.answer(asked), asked.model))
            except Refused as refused:
                status, told = refused.status, (str(refused), refused.param, refused.code)
            except EngineError as error:
                status, told = 503, (str(error), None, "engine_error")
            return _json(form.error(status, *told), status)

        return answer

    def _session_of(self, request: web.Request) -> Session:
        given = request.headers.get("x-api-key") or request.headers.get("Authorization", "").removeprefix(
            "Bearer "
        )
        for key, session in self._sessions.items():
            if hmac.compare_digest(key.encode(), given.encode(errors="replace")):
                return session
        raise Refused(
            401, "no episode has this API key; give the client `call.api_key`", code="invalid_api_key"
        )


async def _body(request: web.Request) -> Any:
    """The JSON of a request. Raises Refused."""
    try:
        async with asyncio.timeout(_READ_S):
            return await request.json()
    except TimeoutError:
        raise Refused(408, f"the request was not there whole after {_READ_S:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"the request has more than {_MOST_BYTES >> 20} MiB") from None
    except ValueError as error:
        raise Refused(400, f"the request is no JSON: {error}") from None


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    """An answer, after which the connection is closed: an episode's client may never close its own."""
    # A repeated request would begin another conversation.
    headers = {} if status == 200 else {"x-should-retry": "false"}
    response = web.json_response(body, status=status, headers=headers)
    response.force_close()
    return response


async def _unknown(request: web.Request) -> web.Response:
    message = (
        f"{request.method} {request.path} is not served here: use POST /v1/chat/completions or /v1/messages"
    )
    return _json(openai_form.error(404, message, None, "not_found"), 404)
