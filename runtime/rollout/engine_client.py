"""HTTP to one SGLang server: a key, a deadline on every call, and SGLang's own words in errors."""

from __future__ import annotations

from typing import Any

import httpx


class EngineError(RuntimeError):
    """The engine refused a call, did not answer in time, or is dead."""


class EngineClient:
    """Calls to one server. Nothing is retried: what failed may have happened."""

    def __init__(self, url: str, key: str, connections: int) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, limits=limits, trust_env=False
        )

    async def post(self, path: str, body: dict[str, Any], timeout_s: float) -> Any:
        """The decoded answer. Raises EngineError on any other status than 200 and after `timeout_s`."""
        if self._http.is_closed:
            raise EngineError(f"engine: {path} was called after stop")
        try:
            response = await self._http.post(path, json=body, timeout=httpx.Timeout(timeout_s, connect=10))
        except httpx.TimeoutException as error:
            raise EngineError(f"engine: {path} was not answered in {timeout_s:.0f} s") from error
        except httpx.TransportError as error:
            raise EngineError(f"engine: {path} failed, {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise EngineError(
                f"engine: {path} was refused, HTTP {response.status_code}: {_message(response)}"
            )
        if response.headers.get("content-type", "").startswith("application/json") and response.content:
            return response.json()
        return response.text

    async def healthy(self, timeout_s: float = 2) -> bool:
        """Whether the server says that it serves."""
        try:
            return (await self._http.get("/health", timeout=timeout_s)).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Drops the connections."""
        await self._http.aclose()


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:2000]
    if isinstance(body, dict):
        error = body.get("error", body)
        message = error.get("message", error) if isinstance(error, dict) else error
        return str(message)
    return str(body)[:2000]
