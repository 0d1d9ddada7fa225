"""Runs a hook in processes beside this one, which can be killed: user code may hang, crash, or eat memory.

Each call has a deadline, which counts from its start and not from its place in the queue. A process that misses it is
killed, with what it has started, and replaced. Plain functions get one call at a time in each process. An async
function gets all its calls at once, spread over the processes; if a process is lost with several of them, each is
made once more in a process of its own, so that the one at fault is found.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from verst.runtime.hooks.answer import Answer
from verst.runtime.hooks.errors import HookError, Kind
from verst.runtime.hooks.frames import last_dumped, told, user_frames
from verst.runtime.hooks.limits import Limits
from verst.runtime.hooks.pool_messages import Began, Call, Failed, Ready, Returned
from verst.runtime.hooks.process import HookProcess
from verst.runtime.hooks.score import Score

log = logging.getLogger(__name__)

_LOAD_S = 300.0  # to import the user's module; torch on a slow file system takes a minute
_GRACE_S = 5.0  # after a deadline that the process enforces itself (async), until it is killed
_MOST_TRACEBACKS = 20  # in the log; further failures get one line each
_IDLE_S = 1.0  # before a process is replaced that ended while it had nothing to do
_MOST_LOSSES = 5  # processes lost while one call waited in them for its turn


@dataclass(eq=False)
class _Job:
    """One call, until its value is there."""

    id: int
    place: str
    argument: Answer | list[Answer]
    done: asyncio.Future[Any]
    alone: bool = False  # it must be the only call in its process
    began: bool = False
    losses: int = 0


@dataclass(eq=False)
class _Worker:
    """A process and the calls in it."""

    process: HookProcess
    jobs: dict[int, _Job] = field(default_factory=dict)
    timers: dict[int, asyncio.TimerHandle] = field(default_factory=dict)
    overdue: _Job | None = None  # why it is being killed
    stack: str = ""
    ready: bool = False


class HookPool:
    """The processes of one hook. Made and used in one event loop."""

    def __init__(
        self,
        what: str,
        path: str,
        *,
        processes: int,
        timeout_s: float,
        memory_bytes: int,
        keywords: Mapping[str, Any] | None = None,
    ) -> None:
        self.limits = Limits()
        self._what = what
        self._path = path
        self._processes = processes
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._keywords = keywords or {}
        self._workers: list[_Worker] = []
        self._waiting: deque[_Job] = deque()
        self._ids = itertools.count()
        self._is_async = False
        self._loaded: asyncio.Future[None] | None = None
        self._broken: HookError | None = None
        self._told = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts the processes, and waits until one of them has loaded the hook.

        Raises HookError if it cannot be loaded.
        """
        self._loaded = asyncio.get_running_loop().create_future()
        self._loaded.add_done_callback(lambda loaded: loaded.cancelled() or loaded.exception())
        self._tasks = [asyncio.create_task(self._keep_one()) for _ in range(self._processes)]
        try:
            await asyncio.shield(self._loaded)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kills the processes. Calls in progress are cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in self._waiting:
            job.done.cancel()

    async def call(self, place: str, answer: Answer) -> Score:
        """Calls the hook with an answer. Raises HookError with hook, place and fault.

        The kinds "late" and "died" mean that the process was lost with the call, or that the call was cancelled.
        """
        score: Score = await self._call(place, answer)
        return score

    async def call_group(self, place: str, answers: list[Answer]) -> list[Score]:
        """Calls the hook with all answers to a prompt, and returns a score for each. Raises as `call` does."""
        scores: list[Score] = await self._call(place, answers)
        return scores

    async def _call(self, place: str, argument: Answer | list[Answer]) -> Any:
        if self._loaded is None:
            raise RuntimeError("the pool of hook processes has not been started")
        if self._broken is not None:
            raise self._broken
        job = _Job(next(self._ids), place, argument, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._dispatch()
        return await job.done

    # --- one process after the other ------------------------------------------------------------------

    async def _keep_one(self) -> None:
        """Runs a process, and another one when it is lost."""
        while self._broken is None:
            try:
                await self._run_one()
            except HookError as error:
                self._break(error)
            except Exception as error:  # no process can be started, or it wrote what is no answer
                problem = f"no process for it: {told(error)}"
                self._break(
                    HookError(f"{self._what} {self._path!r}: {problem}", user_frames(error), kind="load")
                )

    async def _run_one(self) -> None:
        process = await HookProcess.start(
            self._what,
            self._path,
            timeout_s=self._timeout_s,
            memory_bytes=self._memory_bytes,
            keywords=self._keywords,
        )
        worker = _Worker(process)
        self._workers.append(worker)
        try:
            await self._load(worker)
            self._dispatch()
            while (answer := await process.receive()) is not None:
                self._take(worker, answer)
                self._dispatch()
        except BaseException:
            self._waiting += worker.jobs.values()  # whoever breaks or closes this pool tells them
            process.kill()
            await process.ended()
            raise
        finally:
            self._workers.remove(worker)
            for timer in worker.timers.values():
                timer.cancel()
        ending, stack = await process.ended()
        if not worker.jobs:
            log.error(
                "%s %r: %s, while it was idle; another one starts\n%s", self._what, self._path, ending, stack
            )
            await asyncio.sleep(_IDLE_S)
        self._lost(worker, ending, worker.stack or stack)

    async def _load(self, worker: _Worker) -> None:
        where = f"{self._what} {self._path!r}"
        try:
            async with asyncio.timeout(_LOAD_S):
                answer = await worker.process.receive()
        except TimeoutError:
            stack = await worker.process.stack()
            worker.process.kill()
            await worker.process.ended()
            problem = f"importing it took more than {_LOAD_S:.0f} s{last_dumped(stack)}"
            raise HookError(f"{where}: {problem}", stack, "load") from None
        if isinstance(answer, Failed):
            await worker.process.ended()
            raise HookError(answer.message, answer.frames, "load")
        if answer is None:
            ending, stack = await worker.process.ended()
            raise HookError(f"{where}: importing it failed: {ending}", stack, "load")
        assert isinstance(answer, Ready)
        self._is_async, self.limits = answer.is_async, answer.limits
        worker.ready = True
        assert self._loaded is not None
        if not self._loaded.done():
            self._loaded.set_result(None)

    def _break(self, error: HookError) -> None:
        """The hook cannot be loaded (any more): every call fails."""
        self._broken = self._broken or error
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(error)
        while self._waiting:
            _fail(self._waiting.popleft(), error)

    # --- calls ----------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Gives waiting calls to processes with room, the least busy first."""
        while self._waiting:
            if self._waiting[0].done.done():  # nobody waits for it any more
                self._waiting.popleft()
                continue
            free = [worker for worker in self._workers if self._has_room(worker, self._waiting[0])]
            if not free:
                return
            self._give(min(free, key=lambda worker: len(worker.jobs)), self._waiting.popleft())

    def _has_room(self, worker: _Worker, job: _Job) -> bool:
        if not worker.ready or worker.overdue is not None:
            return False
        if not worker.jobs:
            return True
        return self._is_async and not job.alone and not any(other.alone for other in worker.jobs.values())

    def _give(self, worker: _Worker, job: _Job) -> None:
        job.began = False
        worker.jobs[job.id] = job
        try:
            worker.process.send(Call(job.id, job.place, job.argument))
        except TypeError as error:  # a label or metadata of a type that no data file has
            del worker.jobs[job.id]
            _fail(job, self._error(job, f"its arguments cannot be passed on: {error}", "", "raised"))
            return
        limit = self._timeout_s + (_GRACE_S if self._is_async else 0.0)
        loop = asyncio.get_running_loop()
        worker.timers[job.id] = loop.call_later(limit, self._is_overdue, worker, job)

    def _is_overdue(self, worker: _Worker, job: _Job) -> None:
        if worker.overdue is None:
            worker.overdue = job
            task = asyncio.create_task(self._end_hung(worker))
            self._tasks = [t for t in self._tasks if not t.done()] + [task]

    async def _end_hung(self, worker: _Worker) -> None:
        worker.stack = await worker.process.stack()
        worker.process.kill()

    def _take(self, worker: _Worker, answer: Any) -> None:
        job = worker.jobs.get(answer.id)
        if job is None:
            return
        if isinstance(answer, Began):
            job.began = True
            return
        del worker.jobs[job.id]
        worker.timers.pop(job.id).cancel()
        if isinstance(answer, Returned):
            if not job.done.done():
                job.done.set_result(answer.value)
        else:
            _fail(job, HookError(answer.message, answer.frames, answer.kind))

    def _lost(self, worker: _Worker, ending: str, stack: str) -> None:
        """A process has ended with calls in it: the call at fault fails, and others are made again."""
        suspects = [job for job in worker.jobs.values() if job.began]
        for job in worker.jobs.values():
            job.losses += 1
            if suspects == [job]:
                late = worker.overdue is not None
                problem = f"no value after {self._timeout_s:g} s{last_dumped(stack)}" if late else ending
                kind: Kind = "late" if late or ending.startswith("used too much CPU") else "died"
                self._fail(job, self._error(job, problem, stack, kind))
            elif job.losses >= _MOST_LOSSES:
                self._fail(
                    job, self._error(job, f"{job.losses} processes were lost before its turn", "", "died")
                )
            else:
                job.alone = job in suspects
                self._waiting.appendleft(job)
        if self._broken is not None:
            self._break(self._broken)
        self._dispatch()

    def _fail(self, job: _Job, error: HookError) -> None:
        """Tells a loss in the log, with the stack of the lost process, and to the caller."""
        self._told += 1
        log.error(
            "%s%s", error, f"\n{error.frames}" if error.frames and self._told <= _MOST_TRACEBACKS else ""
        )
        _fail(job, error)

    def _error(self, job: _Job, problem: str, stack: str, kind: Kind) -> HookError:
        return HookError(f"{self._what} {self._path!r}, {job.place}: {problem}", stack, kind)


def _fail(job: _Job, error: HookError) -> None:
    if not job.done.done():
        job.done.set_exception(error)
