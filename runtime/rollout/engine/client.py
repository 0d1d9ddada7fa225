"""The HTTP client of one SGLang server. Every call has an API key and a deadline; errors quote SGLang's message."""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

_CONNECT_S = 10
# The client closes a connection that was idle for this long; the server keeps it for much longer. If the server closed
# first, it could do so while a request is on its way.
KEEP_ALIVE_S = 15
SERVER_KEEP_ALIVE_S = 3600
_READ_AHEAD = 1 << 20  # bytes; an answer with routing has megabytes


class EngineError(RuntimeError):
    """The engine refused a call, did not answer in time, or is dead."""


class EngineClient:
    """Calls one server. Must be made and used in one event loop.

    Nothing is retried, because a failed call may have taken effect.
    """

    def __init__(self, url: str, key: str, connections: int) -> None:
        self.url = url
        self._http = aiohttp.ClientSession(
            url,
            headers={"Authorization": f"Bearer {key}"},
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEEP_ALIVE_S),
            read_bufsize=_READ_AHEAD,
        )

    async def post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """Posts `body` as JSON; returns the decoded answer.

        Raises EngineError if the status is not 200, if there is no answer within `timeout_s`, or if the call fails.
        """
        if self._http.closed:
            raise EngineError(f"engine: {path} was called after stop")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        try:
            async with self._http.post(path, json=body, timeout=timeout) as response:
                content = await response.read()
        except TimeoutError as error:
            raise EngineError(f"engine: {path} was not answered in {timeout_s:.0f} s") from error
        except aiohttp.ClientError as error:
            raise EngineError(f"engine: {path} failed, {type(error).__name__}: {error}") from error
        if response.status != 200:
            raise EngineError(f"engine: {path} was refused, HTTP {response.status}: {_message(content)}")
        if response.content_type == "application/json" and content:
            return msgspec.json.decode(content)
        return content.decode(errors="replace")

    async def healthy(self, timeout_s: float = 2) -> bool:
        """Whether the server reports that it serves."""
        try:
            async with self._http.get("/health", timeout=aiohttp.ClientTimeout(total=timeout_s)) as response:
                return response.status == 200
        except (TimeoutError, aiohttp.ClientError):
            return False

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.close()


def _message(content: bytes) -> str:
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return content[:2000].decode(errors="replace")
    if isinstance(body, dict):
        error = body.get("error", body)
        message = error.get("message", error) if isinstance(error, dict) else error
        return str(message)
    return str(body)[:2000]
