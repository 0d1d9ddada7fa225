"""Scores answers with a reward function, in processes that can be killed, and decides what a failure means."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Literal, Self

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError
from verst.runtime.hooks.pool import HookPool
from verst.runtime.hooks.score import Score
from verst.runtime.node.cpu_quota import usable_cores
from verst.runtime.rewards.config import RewardPart, parts_of

log = logging.getLogger(__name__)

_MOST_PROCESSES = 8  # by default
_LEAST_BYTES = 1 << 30  # by default; importing torch takes half of it
_LOST = ("late", "died")


class RewardFailedError(Exception):
    """A call of the reward failed, and the recipe says to drop the group. The message is the hook's error."""


class RewardFunction:
    """The reward that a recipe names: a function by its dotted path, or the weighted sum of several.

    `start` starts the processes, `close` ends them; or use `async with`.
    """

    def __init__(
        self,
        reward: str | list[RewardPart],
        timeout_s: float = 60,
        *,
        processes: int | None = None,
        memory_gib: float | None = None,
        failure: Literal["fail", "drop"] | float = "fail",
        retries: int = 0,
    ) -> None:
        """The arguments are those of the recipe's `rollout` section.

        Args:
            reward: the dotted path of a function, or the parts of a sum.
            timeout_s: seconds that a call may take, from its start.
            processes: how many processes each function has; by default one for each CPU that may be kept busy, between
                2 and 8, shared by the functions.
            memory_gib: the memory of each process; by default a quarter of the node's, shared by all.
            failure: raise the error of a call that failed, drop its group, or score it so.
            retries: further attempts of a call that failed.
        """
        self._sum = not isinstance(reward, str)
        self._parts = parts_of(reward)
        self._scored_failures = 0
        self._failure = failure
        self._retries = retries
        functions = len(self._parts)
        usual = min(_MOST_PROCESSES, max(2, usable_cores()))
        count = processes or (usual if functions == 1 else max(1, usual // functions))
        shared = node_memory() // 4 // (count * functions)
        memory = int(memory_gib * 2**30) if memory_gib else max(_LEAST_BYTES, shared)
        self._pools = [
            HookPool(
                "reward function",
                part.function,
                processes=count,
                timeout_s=timeout_s,
                memory_bytes=memory,
                keywords=part.arguments,
            )
            for part in self._parts
        ]

    async def start(self) -> None:
        """Starts the processes. Raises HookError if a function cannot be loaded."""
        try:
            await asyncio.gather(*(pool.start() for pool in self._pools))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the processes."""
        await asyncio.gather(*(pool.close() for pool in self._pools))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def score(self, answer: Answer, *, place: str) -> Score:
        """Returns the reward of an answer, with its parts.

        `place` is which one it is, for messages: "sample 2 of group 41". The parts of a sum are each function's value
        under its name, and the parts of its own as `NAME.PART`.

        Raises HookError with function, sample and fault if the call fails, its retries too, and the recipe gives
        failures no score; RewardFailedError if the recipe drops their groups. In an evaluation, which can drop nothing,
        such a call is scored 0. A label that the function cannot use is never scored: it is the data's fault.
        """
        calls = [asyncio.ensure_future(self._call(pool, answer, place)) for pool in self._pools]
        try:
            scores = await asyncio.gather(*calls)
        except _ScoredFailure as failure:
            self._scored_failures += not answer.evaluation
            return Score(failure.value)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return self._added(scores) if self._sum else scores[0]

    async def _call(self, pool: HookPool, answer: Answer, place: str) -> Score:
        """Calls one function, again if it fails and the recipe says so."""
        attempts = 0
        while True:
            attempts += 1
            try:
                return await pool.call(place, answer)
            except HookError as error:
                lost = pool.limits.lost
                # A process may also die of something else, such as another's appetite for memory.
                again = self._retries if lost is None or error.kind != "died" else max(1, self._retries)
                if error.kind in ("label", "load"):
                    raise
                if attempts <= again:
                    log.warning("attempt %d failed: %s; trying again", attempts, error)
                    continue
                if lost is not None and error.kind in _LOST:
                    self._scored_failures += not answer.evaluation
                    log.warning("%s is scored %g", place, lost)
                    return Score(lost)
                score = self._failure
                if score == "fail":
                    raise
                if score == "drop":
                    if not answer.evaluation:
                        raise RewardFailedError(str(error)) from error
                    score = 0.0
                log.warning("%s is scored %g", place, score)
                raise _ScoredFailure(float(score)) from error

    def _added(self, scores: list[Score]) -> Score:
        """The weighted sum, with its parts."""
        parts: dict[str, float] = {}
        for part, score in zip(self._parts, scores, strict=True):
            parts |= {f"{part.label}.{name}"[:60]: value for name, value in score.parts.items()}
        parts |= {part.label: score.value for part, score in zip(self._parts, scores, strict=True)}
        value = sum(part.weight * score.value for part, score in zip(self._parts, scores, strict=True))
        return Score(value, parts)

    def take_failures(self) -> int:
        """How many calls for training have failed and were scored nevertheless, since this was last asked."""
        failures, self._scored_failures = self._scored_failures, 0
        return failures


class _ScoredFailure(Exception):
    """A function failed, and the recipe gives the sample a reward of its own: the sum counts no more."""

    def __init__(self, value: float) -> None:
        super().__init__(value)
        self.value = value


def node_memory() -> int:
    """The bytes of memory that this process may use: the node's, or the limit of its cgroup if that is lower."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        places = [
            Path("/sys/fs/cgroup") / group.lstrip("/"),
            *Path("/sys/fs/cgroup", group.lstrip("/")).parents,
        ]
        limits = [place / "memory.max" for place in places if place.is_relative_to("/sys/fs/cgroup")]
        found = [limit.read_text().strip() for limit in limits if limit.is_file()]
    except OSError:
        return memory
    return min([memory, *(int(text) for text in found if text.isdigit())])
