"""The HTTP server of a rollout worker's episodes: on loopback, with a key for each episode."""

from __future__ import annotations

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
                try:
                    body = await request.json()
                except ValueError as error:
                    raise Refused(400, f"the request is no JSON: {error}") from None
                asked = form.read(body)
                return web.json_response(form.write(await session.answer(asked), asked.model))
            except Refused as refused:
                status, told = refused.status, (str(refused), refused.param, refused.code)
            except EngineError as error:
                status, told = 503, (str(error), None, "engine_error")
            headers = {"x-should-retry": "false"}  # a repeated request would begin another conversation
            return web.json_response(form.error(status, *told), status=status, headers=headers)

        return answer

    def _session_of(self, request: web.Request) -> Session:
        given = request.headers.get("x-api-key") or request.headers.get("Authorization", "").removeprefix(
            "Bearer "
        )
        for key, session in self._sessions.items():
            if hmac.compare_digest(key.encode(), given.encode()):
                return session
        raise Refused(
            401, "no episode has this API key; give the client `call.api_key`", code="invalid_api_key"
        )


async def _unknown(request: web.Request) -> web.Response:
    message = (
        f"{request.method} {request.path} is not served here: use POST /v1/chat/completions or /v1/messages"
    )
    return web.json_response(openai_form.error(404, message, None, "not_found"), status=404)
