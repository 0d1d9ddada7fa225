"""Serves an actor from a background thread, in processes whose main thread does torch work.

```python
class Rank(Actor):
    def __init__(self, main: MainThread) -> None: ...
    async def train(self, plan: StepPlan) -> StepReport:
        return await self.main.run(lambda: self.trainer.step(plan))

main = MainThread()
with MemberThread(main, folder, "trainer", rank, Rank(main)) as thread:
    main.serve()                                        # runs the work until main.stop()
```

The background loop keeps answering (leases, cancellations, other methods) while the main thread is in a
kernel.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

from verst.runtime.actors.actor import Actor
from verst.runtime.actors.errors import ActorError
from verst.runtime.actors.member import Member
from verst.runtime.run.folder import RunFolder

T = TypeVar("T")

_JOIN_TIMEOUT_S = 60.0
_LEAVE_TIMEOUT_S = 15.0


class MainThread:
    """Runs work on the main thread, in the order in which it was handed over."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._ending: BaseException | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` on the main thread. Returns its result, or raises its exception.

        Call it from an actor's method. If this is cancelled before the work begins, the work never runs. Once
        begun, the work runs to its end, and only the wait for it is cancelled.
        """
        future: Future[T] = Future()
        self._work.put((future, work))
        return await asyncio.wrap_future(future)

    def serve(self) -> None:
        """Runs work until `stop`, on the main thread. Raises the reason that `stop` was given, if any."""
        while (item := self._work.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)
            except (
                BaseException
            ) as error:  # KeyboardInterrupt, SystemExit: for the caller and for this thread
                future.set_exception(error)
                raise
        if self._ending is not None:
            raise self._ending

    def stop(self, reason: BaseException | None = None) -> None:
        """Ends `serve` after all work that was handed over before. Can be called from any thread."""
        self._ending = reason
        self._work.put(None)


class MemberThread:
    """A member whose loop runs in a background thread, while the `with` block runs in this one.

    If the membership ends by itself (fenced off, replaced), `main.serve` raises the reason.
    """

    def __init__(
        self,
        main: MainThread,
        folder: RunFolder,
        role: str,
        index: int,
        actor: Actor | None,
        host: str = "127.0.0.1",
        details: dict[str, str | int] | None = None,
        **options: float,
    ) -> None:
        """Takes the arguments of `Member.join`; `options` are its `timeout` and `lease`."""
        self._main = main
        self._joining = lambda: Member.join(folder, role, index, actor, host, details, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"{role}-{index}-actors", daemon=True
        )
        self._watch: Future[None] | None = None
        self.member: Member

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.member = self._run(self._joining(), _JOIN_TIMEOUT_S)
        except BaseException:
            self._end_loop()
            raise
        self._watch = asyncio.run_coroutine_threadsafe(self._watch_membership(), self._loop)
        return self

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Runs a coroutine on the loop and waits for it. Raises CallTimeout after `timeout` seconds."""
        return self.member.call_blocking(coroutine, timeout)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self.member.leave(), _LEAVE_TIMEOUT_S)
        finally:
            self._end_loop()

    def _run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    async def _watch_membership(self) -> None:
        reason: ActorError | None = await self.member.wait_left()
        if reason is not None:
            self._main.stop(reason)

    def _end_loop(self) -> None:
        self._run(self._loop.shutdown_default_executor(), _LEAVE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LEAVE_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()
