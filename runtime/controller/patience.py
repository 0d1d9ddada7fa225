"""Limits how long a run waits for engines: it reports the wait, and at a deadline it stops the run, which saves.

A run that has just started waits for engines as a matter of course: it says that they start, and not that any are
missing.
"""

from __future__ import annotations

import asyncio

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.loop_state import LoopState
from verst.runtime.run.folder import RunFolder

_SAY_AFTER_S = 15.0  # an engine that restarts at once is not worth an event


class Patience:
    """Watches whether enough engines serve. Call `look` regularly."""

    def __init__(
        self,
        folder: RunFolder,
        state: LoopState,
        limit_s: float,
        events: asyncio.Queue[ev.Event | ev.Finish],
    ) -> None:
        self._folder = folder
        self._state = state
        self._limit_s = limit_s
        self._events = events
        self._since: float | None = None
        self._said = False
        self._had_enough = False  # since the run started

    def look(self, now: float) -> None:
        """Reports that a wait has begun or ended, and asks the run to stop if it has lasted too long.

        `now` is the time of a monotonic clock, in seconds.
        """
        missing = self._state.engines_missing()
        if not missing:
            enough = len(self._state.engines) >= self._state.settings.min_engines
            if self._said and self._since is not None and enough:
                self._tell_enough(now - self._since)
            self._had_enough = self._had_enough or enough
            self._since, self._said = None, False
            return
        if self._since is None:
            self._since = now
        waited = now - self._since
        there, least = len(self._state.engines), self._state.settings.min_engines
        if not self._said and waited >= min(_SAY_AFTER_S, self._limit_s):
            self._said = True
            self._tell_missing(there, least)
        if waited >= self._limit_s:
            self._since = now  # asking once is enough
            reason = (
                f"{there} engines served for {waited:.0f} s (rollout.wait_for_engines_s), "
                f"rollout.min_engines is {least}"
            )
            self._events.put_nowait(ev.StopAsked(reason, hopeless=True))

    def _tell_missing(self, there: int, least: int) -> None:
        limit = f"up to {self._limit_s:.0f} s (rollout.wait_for_engines_s)"
        if self._had_enough:
            text = f"{there} engines serve, rollout.min_engines is {least}: waiting {limit} for more"
            self._folder.event("waiting_for_engines", message=text)
        else:
            started = f"; {there} of {least} serve" if there else ""
            self._folder.event("engines_start", message=f"the engines start{started} (this may take {limit})")

    def _tell_enough(self, seconds: float) -> None:
        if self._had_enough:
            self._folder.event(
                "engines_back", message=f"enough engines again after {seconds:.0f} s: going on"
            )
        else:
            self._folder.event("engines_ready", message=f"the engines serve after {seconds:.0f} s")
