"""Runs long commands as tasks beside the controller's loop. Their results come back as events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from verst.runtime.actors import ActorError
from verst.runtime.controller.final_faults import final_fault
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.hooks.errors import HookError

log = logging.getLogger(__name__)


class Background:
    """Tasks whose result is an event, or nothing. A task that fails ends the run; for good if a hook is at fault."""

    def __init__(self, put: Callable[[ev.Event | ev.Finish], None]) -> None:
        """`put` takes the events, and the `Finish` of a failure."""
        self._put = put
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Awaitable[ev.Event | None], what: str) -> None:
        """Starts a task; `what` names it in the reason of a failure."""

        async def guarded() -> None:
            try:
                event = await work
            except (ActorError, OSError, ValueError, HookError) as error:
                fault = final_fault(error)
                self._fail(f"{what} failed: {fault or error}", hopeless=fault is not None)
            else:
                if event is not None:
                    self._put(event)

        task = asyncio.get_running_loop().create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def wait(self, timeout_s: float) -> None:
        """Waits until the tasks that run now have ended, at most `timeout_s` seconds."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # a bug: show all of it
            log.error("controller task failed", exc_info=error)
            self._fail(f"controller error: {error!r}")

    def _fail(self, reason: str, hopeless: bool = False) -> None:
        self._put(ev.Finish(ok=False, reason=reason, hopeless=hopeless))
