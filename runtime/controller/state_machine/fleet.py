"""The controller's view of the engines: which serve, which weights they hold, and which prompts they work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from verst.runtime.controller.state_machine.askers import Askers


@dataclass
class Engine:
    """One engine that serves."""

    version: int = -1  # of its weights, as synced in this life of the run; -1: none yet
    room: int = 0  # samples it asked for and did not get yet
    groups: set[int] = field(default_factory=set)  # prompt groups in flight
    evals: set[int] = field(default_factory=set)  # evaluation prompts in flight


class Fleet:
    """All engines that serve, by number. A call about one engine takes the same time however many there are."""

    def __init__(self) -> None:
        self.engines: dict[int, Engine] = {}
        self.behind: set[int] = (
            set()
        )  # engines without the current weights, which a weight round has to update
        self.held: set[int] = (
            set()
        )  # engines that keep the version that is being evaluated: rounds pass them by
        self._most_held: int | None = None
        self._held_behind: set[int] = set()  # those of them that hold old weights by now
        self._asking = Askers()  # engines with room for more prompts
        self._holders: dict[tuple[bool, int], Engine] = {}  # (evaluation?, prompt) -> the engine that has it
        self._syncing: dict[int, Engine] = {}  # the engines of the weight round in progress

    # --- who serves ---------------------------------------------------------------------------------

    def join(self, number: int) -> None:
        """Adds an engine, which has no weights of this run yet."""
        self.engines[number] = Engine()
        self.behind.add(number)

    def leave(self, number: int) -> Engine | None:
        """Removes an engine and returns it, with the prompts it had in flight. None if it did not serve."""
        self._asking.discard(number)
        for numbers in (self.behind, self.held, self._held_behind):
            numbers.discard(number)
        return self.engines.pop(number, None)

    # --- weights ------------------------------------------------------------------------------------

    def weights_outdated(self) -> None:
        """The trainer has made a new version, so every engine is behind."""
        self.behind = set(self.engines) - self.held
        self._held_behind = set(self.held)

    def weights_dropped(self) -> None:
        """Every engine has given up its weights."""
        self.held, self._held_behind = set(), set()
        for number, engine in self.engines.items():
            self.behind.add(number)
            self._set_version(number, engine, -1)

    def begin_sync(self) -> tuple[int, ...]:
        """Begins a weight round. Returns the engines that it has to update: those that are behind."""
        behind = tuple(sorted(self.behind))
        self._syncing = {number: self.engines[number] for number in behind}
        return behind

    def end_sync(self, version: int, updated: Iterable[int], failed: Iterable[int]) -> list[int]:
        """Ends the weight round. Returns the failed engines that still serve: they are to be given up.

        An engine that was lost during the round and has come back since is a different one: it is neither
        updated nor given up.
        """
        syncing, self._syncing = self._syncing, {}
        for number in updated:
            engine = self.engines.get(number)
            if engine is not None and engine is syncing.get(number):
                self.behind.discard(number)
                self._set_version(number, engine, version)
        return [number for number in failed if self.engines.get(number) is syncing.get(number)]

    def hold(self, version: int, most: int | None) -> bool:
        """Has up to `most` engines (None: all) that hold `version` keep it. Returns whether there is any.

        Call it when the evaluation of `version` begins, and again when engines have come or gone.
        """
        self._most_held = most
        if most is None or len(self.held) < most:
            able = (n for n, e in self.engines.items() if e.version == version and n not in self.behind)
            self.held.update(
                n for n in sorted({*able} - self.held)[: None if most is None else most - len(self.held)]
            )
        return bool(self.held)

    def enough_held(self) -> bool:
        """Whether the engines that keep the version under evaluation are as many as may be, as far as there are any."""
        return bool(self.held) and (self._most_held is None or len(self.held) >= self._most_held)

    def release(self) -> None:
        """The evaluation is over: the engines that held its version take part in weight rounds again."""
        self.behind |= self._held_behind
        self.held, self._held_behind = set(), set()

    def next_evaluator(self, room: int, version: int) -> int | None:
        """Returns the next engine with at least `room` that keeps `version` for its evaluation, or None."""
        if self._most_held is None:  # every engine with that version keeps it
            return self.next_asker(room, lambda held: held == version)
        asking = (n for n in self.held if n in self._asking and self.engines[n].room >= room)
        return min(asking, key=lambda n: (-self.engines[n].room, n), default=None)

    def _set_version(self, number: int, engine: Engine, version: int) -> None:
        engine.version = version
        if number in self._asking:
            self._asking.put(number, version, engine.room)

    # --- prompts in flight --------------------------------------------------------------------------

    def asks(self, number: int, room: int) -> None:
        """An engine has room for `room` samples; one that does not serve is ignored."""
        engine = self.engines.get(number)
        if engine is not None:
            engine.room = room
            self._asking.put(number, engine.version, room)

    def next_asker(self, room: int, eligible: Callable[[int], bool]) -> int | None:
        """Returns the next engine with at least `room` and weights of an eligible version, or None."""
        return self._asking.first(room, eligible)

    def give(self, number: int, ids: Sequence[int], samples: int, *, evaluation: bool) -> None:
        """Notes that an engine gets these prompts, each of `samples` samples. It has to ask again for more."""
        engine = self.engines[number]
        (engine.evals if evaluation else engine.groups).update(ids)
        self._holders.update(((evaluation, id), engine) for id in ids)
        engine.room -= len(ids) * samples
        self._asking.discard(number)

    def finished(self, id: int, *, evaluation: bool) -> None:
        """A prompt is answered, dropped or failed: no engine works on it any more."""
        engine = self._holders.pop((evaluation, id), None)
        if engine is not None:
            (engine.evals if evaluation else engine.groups).discard(id)

    def working(self) -> list[Engine]:
        """The engines with prompts in flight."""
        return [engine for engine in self.engines.values() if engine.groups or engine.evals]

    def take_back(self, engine: Engine) -> tuple[set[int], set[int]]:
        """Takes away an engine's prompts in flight. Returns the prompt groups and the evaluation prompts."""
        groups, evals, engine.groups, engine.evals = engine.groups, engine.evals, set(), set()
        for id in groups:
            self._holders.pop((False, id), None)
        for id in evals:
            self._holders.pop((True, id), None)
        return groups, evals
