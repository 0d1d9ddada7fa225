"""Answers the rollout workers' calls: every call becomes an event, and `take` waits for the prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from verst.runtime.controller.reporting.measure import RolloutMeasure
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.messages.apis import ControllerApi
from verst.runtime.messages.jobs import EngineInfo, EvalResult, PromptJob, RolloutStats
from verst.runtime.messages.sample import GroupMeta

_TAKE_SECONDS = 10.0  # how long `take` and `may_start` wait before they answer with nothing


class Mailboxes:
    """Keeps the prompts of each engine until a `take` of its worker fetches them."""

    def __init__(self) -> None:
        self._jobs: dict[int, list[PromptJob]] = {}
        self._arrived: dict[int, asyncio.Event] = {}  # by engine: a delivery wakes one `take`, not all

    def deliver(self, engine: int, jobs: list[PromptJob]) -> None:
        """Puts jobs into the engine's mailbox and wakes its waiting `take`."""
        self._jobs.setdefault(engine, []).extend(jobs)
        if engine in self._arrived:
            self._arrived[engine].set()

    async def collect(self, engine: int, timeout: float) -> list[PromptJob]:
        """Takes all jobs out of the mailbox. Waits up to `timeout` seconds for the first."""
        arrived = self._arrived.setdefault(engine, asyncio.Event())
        try:
            async with asyncio.timeout(timeout):
                while not self._jobs.get(engine):
                    arrived.clear()
                    await arrived.wait()
        except TimeoutError:
            return []
        return self._jobs.pop(engine)

    def clear(self, engine: int) -> None:
        """Drops jobs that an earlier incarnation of the engine did not fetch."""
        self._jobs.pop(engine, None)


class Service(ControllerApi):
    """The controller's actor. It turns calls into events."""

    def __init__(
        self,
        put: Callable[[ev.Event], None],
        mailboxes: Mailboxes,
        measure: RolloutMeasure,
        *,
        admits: bool = False,
        drop_scored: Callable[[int, float | None], None] = lambda group, reward: None,
    ) -> None:
        """`admits`: engines ask for permission before they start. `drop_scored` gets the rewards of dropped groups."""
        self._drop_scored = drop_scored
        self.admits = admits
        self._put = put
        self._mail = mailboxes
        self._measure = measure
        # Engines that serve or want to start, with their worker's incarnation.
        self.engines: dict[int, str] = {}
        self._answers: list[EvalResult] = []  # those of the evaluation under way that are for people to read
        self._starts: dict[str, asyncio.Event] = {}  # by incarnation: set when the engine may start

    def let_start(self, engine: int) -> None:
        """Lets an engine start: its waiting or next call of `may_start` returns True."""
        if (incarnation := self.engines.get(engine)) in self._starts:
            self._starts[incarnation].set()

    async def may_start(self, info: EngineInfo) -> bool:
        may = self._starts.get(info.incarnation)
        if may is None:
            self._starts.pop(self.engines.get(info.engine, ""), None)
            may = self._starts[info.incarnation] = asyncio.Event()
            self.engines[info.engine] = info.incarnation
            self._put(ev.EngineWaits(info.engine))
        try:
            async with asyncio.timeout(_TAKE_SECONDS):
                await may.wait()
        except TimeoutError:
            return False
        return True

    def starts(self, incarnation: str) -> bool:
        """Whether this worker has asked to start its engine and the engine does not serve yet."""
        return incarnation in self._starts

    async def engine_ready(self, info: EngineInfo) -> None:
        self._starts.pop(self.engines.get(info.engine, ""), None)
        self.engines[info.engine] = info.incarnation
        self._mail.clear(info.engine)
        self._put(ev.EngineReady(info.engine))

    async def take(self, engine: int, room: int) -> list[PromptJob]:
        self._put(ev.PromptsWanted(engine, room))
        return await self._mail.collect(engine, _TAKE_SECONDS)

    async def accepted(self, engine: int, meta: GroupMeta, stats: RolloutStats) -> None:
        self._measure.group_done(stats)
        self._put(ev.GroupAccepted(meta))

    async def dropped(self, engine: int, group: int, reason: str, detail: str, reward: float | None) -> None:
        self._drop_scored(group, reward)
        self._put(ev.GroupDropped(group, reason, detail))

    async def failed(
        self, engine: int, id: int, evaluation: bool, reason: str, fatal: bool, version: int | None
    ) -> None:
        self._put(ev.GroupFailed(id, evaluation, reason, fatal, version))

    async def scored(self, engine: int, result: EvalResult) -> None:
        if result.answers:
            self._answers.append(result)
        self._put(ev.EvalScored(result.id, result.scored, result.version))

    def take_answers(self, version: int) -> dict[int, EvalResult]:
        """The answers of the evaluation of this version that are for people to read, by id; forgets all."""
        answers, self._answers = self._answers, []
        return {answer.id: answer for answer in answers if answer.version == version}

    async def stop(self, reason: str) -> None:
        self._put(ev.StopAsked(reason))

    async def stop_for_good(self, reason: str) -> None:
        self._put(ev.StopAsked(reason, hopeless=True))
