"""The queue of engines that wait for prompts: most room first, then the newest weights, then the longest wait.

The time of a call grows with the number of different (version, room) pairs, a few dozen at most, and not with
the number of engines. Otherwise each event would look at all engines, of which there may be ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable


class Askers:
    """The engines that wait, each with its weight version and the number of samples it has room for."""

    def __init__(self) -> None:
        # (version, room) -> engines, longest wait first
        self._queues: dict[tuple[int, int], dict[int, None]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # engine -> its queue

    def __contains__(self, engine: int) -> bool:
        return engine in self._places

    def put(self, engine: int, version: int, room: int) -> None:
        """Queues an engine, or changes its version and room. It keeps its place if neither has changed."""
        place = (version, room)
        if self._places.get(engine) != place:
            self.discard(engine)
            self._places[engine] = place
            self._queues.setdefault(place, {})[engine] = None

    def discard(self, engine: int) -> None:
        """Removes an engine that got prompts or is gone. Ignores one that does not wait."""
        place = self._places.pop(engine, None)
        if place is not None:
            queue = self._queues[place]
            del queue[engine]
            if not queue:
                del self._queues[place]

    def first(self, room: int, eligible: Callable[[int], bool]) -> int | None:
        """Returns the next engine with at least `room` and weights of an eligible version, or None."""
        places = [place for place in self._queues if place[1] >= room and eligible(place[0])]
        if not places:
            return None
        return next(iter(self._queues[max(places, key=lambda place: (place[1], place[0]))]))
