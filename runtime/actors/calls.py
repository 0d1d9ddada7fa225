"""Calls methods of other members: finds the member, connects to it if necessary, and sends the call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from verst.runtime.actors.actor import Method
from verst.runtime.actors.link import Link
from verst.runtime.actors.links import Links
from verst.runtime.actors.presence import Presence


class Calls:
    """Makes the calls of a member's handles (`handle.Caller`)."""

    def __init__(self, presence: Presence, links: Links) -> None:
        self._presence = presence
        self._links = links
        self._loop = asyncio.get_running_loop()

    async def call(
        self, role: str, index: int, method: Method, arguments: msgspec.Struct, timeout: float
    ) -> Any:
        """Makes one call and returns its result. `timeout` is in seconds."""
        deadline = self._loop.time() + timeout
        link = await self._link(role, index, method, timeout)
        return await link.call(method, arguments, timeout, deadline)

    async def stream(
        self, role: str, index: int, method: Method, arguments: msgspec.Struct, timeout: float
    ) -> AsyncGenerator[Any]:
        """Calls a method that yields, and yields its items. `timeout` is in seconds, for all of them."""
        deadline = self._loop.time() + timeout
        link = await self._link(role, index, method, timeout)
        async with contextlib.aclosing(link.stream(method, arguments, timeout, deadline)) as items:
            async for item in items:
                yield item

    async def _link(self, role: str, index: int, method: Method, timeout: float) -> Link:
        target = await self._presence.find(role, index, f"{role}-{index}.{method.name}", timeout)
        return self._links.to(target)
