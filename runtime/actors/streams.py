"""Streams: a method that is an async generator sends its items to the caller one by one.

```
caller                       member
  call  ───────────────────▶   starts the generator
  ◀──────────────── item …     at most WINDOW items ahead of what the caller has taken
  more(n) ─────────────────▶   the caller has taken n of them
  ◀─────────── reply | error   the generator's end
```

So a slow caller slows the generator down, and items do not pile up between them. When the caller stops taking
items (`break`, cancellation, its deadline), the generator is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

WINDOW = 32  # the most items that are sent and not yet taken


class Outgoing:
    """The member's end: limits how many items are sent before the caller has taken them."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(WINDOW)
        self._ahead = 0

    async def wait_for_room(self) -> None:
        """Waits until one more item may be sent. Call it before each."""
        await self._room.acquire()
        self._ahead += 1

    def taken(self, items: int) -> bool:
        """Notes that the caller has taken this many items. Returns False if so many were not under way."""
        if not 1 <= items <= self._ahead:
            return False
        self._ahead -= items
        for _ in range(items):
            self._room.release()
        return True


class Incoming:
    """The caller's end: items that have arrived and were not taken yet, and how the stream ended."""

    def __init__(self, end: asyncio.Future[Any]) -> None:
        self._end = end
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        end.add_done_callback(lambda _: self._items.put_nowait(_END))

    def came(self, item: Any) -> bool:
        """Adds an item that arrived. Returns False if the member has sent more than it may."""
        if self._items.qsize() >= 2 * WINDOW:
            return False
        self._items.put_nowait(item)
        return True

    async def take(self, taken: Callable[[int], None]) -> AsyncGenerator[Any]:
        """Yields the items in order, and reports to the member how many were taken by calling `taken`.

        Raises the error that the stream ended with, if any.
        """
        untold = 0
        while (item := await self._items.get()) is not _END:
            untold += 1
            if untold == WINDOW // 2:
                taken(untold)
                untold = 0
            yield item
        self._end.result()


_END = object()
