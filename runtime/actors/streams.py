"""Streams: a method that is an async generator gives its items to the caller one by one.

```
caller                       member
  call  ───────────────────▶   starts the generator
  ◀──────────────── item …     at most WINDOW items ahead of what the caller has taken
  more(n) ─────────────────▶   the caller has taken n of them
  ◀─────────── reply | error   the generator's end
```

So a slow caller slows the generator down and nothing piles up between them. A caller that stops taking items
(`break`, cancellation, its deadline) cancels the generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

WINDOW = 32  # items under way at most


class Outgoing:
    """The member's end: room for the items that the caller has not taken yet."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(WINDOW)
        self._ahead = 0

    async def wait_for_room(self) -> None:
        """Before each item."""
        await self._room.acquire()
        self._ahead += 1

    def taken(self, items: int) -> bool:
        """The caller says that it has taken so many; False when it never got them."""
        if not 1 <= items <= self._ahead:
            return False
        self._ahead -= items
        for _ in range(items):
            self._room.release()
        return True


class Incoming:
    """The caller's end: items that came and were not taken yet, and how the stream ended."""

    def __init__(self, end: asyncio.Future[Any]) -> None:
        self._end = end
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        end.add_done_callback(lambda _: self._items.put_nowait(_END))

    def came(self, item: Any) -> bool:
        """An item arrived; False when the member sent more than it may."""
        if self._items.qsize() >= 2 * WINDOW:
            return False
        self._items.put_nowait(item)
        return True

    async def take(self, taken: Callable[[int], None]) -> AsyncGenerator[Any]:
        """The items in order; `taken` tells the member so. Raises what the stream ended with."""
        untold = 0
        while (item := await self._items.get()) is not _END:
            untold += 1
            if untold == WINDOW // 2:
                taken(untold)
                untold = 0
            yield item
        self._end.result()


_END = object()
