"""Scores answers with a reward function, in processes that can be killed, and decides what a failure means."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Literal, Self

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.pool import HookPool
from verst.runtime.hooks.score import Score
from verst.runtime.node.cpu_quota import usable_cores
from verst.runtime.rewards.config import RewardPart, parts_of
from verst.runtime.rewards.failures import Failures, ScoredFailure

_MOST_PROCESSES = 8  # by default
_LEAST_BYTES = 1 << 30  # by default; importing torch takes half of it


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
        self._failures = Failures(failure, retries)
        count, memory = pool_size(processes, memory_gib, functions=len(self._parts))
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
        except ScoredFailure as failure:  # the recipe scores the whole sample: the other parts count no more
            return Score(failure.value)
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return self._added(scores) if self._sum else scores[0]

    async def _call(self, pool: HookPool, answer: Answer, place: str) -> Score:
        """Calls one function of the sum."""
        try:
            return await self._failures.attempt(
                lambda: pool.call(place, answer), pool.limits, place, evaluation=answer.evaluation
            )
        except ScoredFailure as failure:
            if failure.of_function:
                return Score(failure.value)
            raise

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
        return self._failures.take()


def pool_size(processes: int | None, memory_gib: float | None, *, functions: int = 1) -> tuple[int, int]:
    """The processes of each of so many functions, and the bytes of memory of each; what is None is by default."""
    usual = min(_MOST_PROCESSES, max(2, usable_cores()))
    count = processes or (usual if functions == 1 else max(1, usual // functions))
    shared = node_memory() // 4 // (count * functions)
    return count, int(memory_gib * 2**30) if memory_gib else max(_LEAST_BYTES, shared)


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
