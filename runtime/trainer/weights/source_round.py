"""The source rank's side of a weight round: calls to the engines' workers, and which engines fail and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from verst.runtime.actors import ActorError, Member
from verst.runtime.messages.apis import RolloutApi
from verst.runtime.messages.weight_round import RoundReport, Taken, WeightRound
from verst.sync.wire.groups import EngineError

log = logging.getLogger(__name__)

Ask = Callable[[RolloutApi], Any]

# In order. Versions in a folder have "write" and "load", the other transports have "transfer".
PHASES = ("connect", "pause", "gather", "convert", "write", "transfer", "load", "resume", "check")


class Engines:
    """Calls rollout workers from the trainer's thread."""

    def __init__(self, member: Member) -> None:
        self._member = member

    def incarnation(self, engine: int, timeout: float) -> tuple[str, int]:
        """Returns the incarnation of the engine's current worker, and the engine's number of ranks.

        Raises ActorError when no worker is found in time.
        """
        info = self._member.call_blocking(self._member.find("rollout", engine), timeout)
        return info.incarnation, int(info.details["engine_ranks"])

    def call(self, engine: int, ask: Ask, timeout: float) -> Future[Any]:
        """Starts a call to the engine's worker; `timeout` is in seconds."""
        return self._member.submit(ask(self._member.handle(RolloutApi, "rollout", engine, timeout=timeout)))


class SourceRound:
    """One round: the engines still in it, the failed ones, and the seconds of each phase."""

    def __init__(self, request: WeightRound, engines: Engines, forget: Callable[[int], None]) -> None:
        """`forget(engine)` drops the links with an engine that is left out."""
        self.request = request
        self.live = list(request.engines)
        self.deadline = time.monotonic() + request.deadline_s
        self.bytes = 0
        self.checked = 0
        self.taken: dict[int, Taken] = {}
        self.link_bytes: dict[int, list[int]] = {}
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._engines = engines
        self._forget = forget
        self._failed: dict[int, str] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the body's time to a phase of the round."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - began

    def pause(self) -> None:
        """Stops generation on every engine of the round."""
        with self.timed("pause"):
            self._each(lambda worker: worker.pause(self.request.pause))

    def resume(self) -> None:
        """Lets the engines that have the whole version generate again."""
        with self.timed("resume"):
            self._each(lambda worker: worker.resume(self.request.version))

    def report(self) -> RoundReport:
        """Returns the round's report for the controller."""
        return RoundReport(
            version=self.request.version,
            updated=self.live,
            failed=self._failed,
            bytes=self.bytes,
            seconds=self.seconds,
            taken=self.taken,
            link_bytes=self.link_bytes,
            checked_tensors=self.checked,
        )

    def call(self, engine: int, ask: Ask) -> Future[Any]:
        """Starts a call that must end by the round's deadline."""
        return self._engines.call(engine, ask, self.remaining())

    def attempt(self, engine: int, action: Callable[[], Any]) -> Any:
        """Returns the action's result. If it fails, leaves the engine out of the round and returns None."""
        try:
            return action()
        except (ActorError, EngineError, TimeoutError) as error:
            self.leave_out(engine, str(error) or "no answer by the round's deadline")
            return None

    def leave_out(self, engine: int, reason: str) -> None:
        """Takes the engine out of the rest of the round, and drops its links."""
        if engine not in self.live:
            return
        log.warning("engine %d is left out of round %d: %s", engine, self.request.version, reason)
        self.live.remove(engine)
        self._failed[engine] = reason
        self._forget(engine)

    def remaining(self) -> float:
        """Seconds until the round's deadline."""
        return max(0.1, self.deadline - time.monotonic())

    def _each(self, ask: Ask) -> None:
        answers = {engine: self.call(engine, ask) for engine in self.live}
        for engine, answer in answers.items():
            self.attempt(engine, partial(answer.result, self.remaining()))


def timed(source: SourceRound | None, phase: str) -> AbstractContextManager[None]:
    """Adds the body's time to a phase of the round on the source. Other ranks keep no times."""
    return nullcontext() if source is None else source.timed(phase)


def failure(answer: Future[Any]) -> str | None:
    """Returns why the engine's answer is a failure; None if it is not, or not yet."""
    if answer.done() and (error := answer.exception()) is not None:
        return str(error)
    return None
