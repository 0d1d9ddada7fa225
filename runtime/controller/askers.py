"""The engines that wait for prompts: most room first, then who asked first.

Questions and changes take time in the number of different (version, room) pairs, a few dozen at most, and
none in the number of engines: with ten thousand of them each event would else look at all.
"""

from __future__ import annotations

from collections.abc import Callable


class Askers:
    """Engine numbers, each with the version of its weights and the samples it has room for."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int], dict[int, None]] = {}  # (version, room) -> engines, in order
        self._places: dict[int, tuple[int, int]] = {}  # engine -> its queue

    def __contains__(self, engine: int) -> bool:
        return engine in self._places

    def put(self, engine: int, version: int, room: int) -> None:
        """The engine asks, or what it asked with has changed. Asking again as before keeps its place."""
        place = (version, room)
        if self._places.get(engine) != place:
            self.discard(engine)
            self._places[engine] = place
            self._queues.setdefault(place, {})[engine] = None

    def discard(self, engine: int) -> None:
        """The engine has got something, or is gone."""
        place = self._places.pop(engine, None)
        if place is not None:
            queue = self._queues[place]
            del queue[engine]
            if not queue:
                del self._queues[place]

    def first(self, room: int, eligible: Callable[[int], bool]) -> int | None:
        """Who is next among those with at least `room` and weights of an eligible version."""
        places = [place for place in self._queues if place[1] >= room and eligible(place[0])]
        if not places:
            return None
        return next(iter(self._queues[max(places, key=lambda place: (place[1], place[0]))]))
