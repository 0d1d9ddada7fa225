"""Learns from the run folder that the run has ended, was cancelled, or has gone on without this agent."""

from __future__ import annotations

import time

from verst.runtime.node.agent.outcome import FENCED, Outcome
from verst.runtime.node.agent.stopping import Stopping
from verst.runtime.node.agent.this_node import ThisNode
from verst.runtime.run.ending import read_end


class FolderWatch:
    """Reads the few small files of the run folder that concern the agent."""

    def __init__(self, here: ThisNode, stopping: Stopping, claim: str | None, lease_s: float | None) -> None:
        """`claim`: this agent's name in the run folder; if another has claimed the node, this one stops.

        `lease_s`: how long the run folder may be out of reach before the agent stops (None: for ever).
        """
        self._here = here
        self._stopping = stopping
        self._claim = claim
        self._lease_s = lease_s
        self._read_at = time.monotonic()

    def look(self) -> Outcome | None:
        """Reads the folder. Returns an outcome if the agent is to end."""
        here, folder = self._here, self._here.folder
        try:
            current = folder.generation
            holder = folder.claimed_by(here.group, here.node) if self._claim else None
            cancelled = here.leads and folder.cancelled
            end = read_end(folder, here.generation)
        except OSError as error:  # shared file systems fail for minutes at times; the processes go on
            here.say(f"cannot read {folder.root}: {error}")
            return self._lease_is_over()
        self._read_at = time.monotonic()
        if holder != self._claim:
            here.say(f"{holder} runs this node of the run now: {self._claim} stops")
            return FENCED
        if current > here.generation:
            if not here.follows:
                here.say(f"life {current} of the run has begun: life {here.generation} stops")
                return FENCED
            self._enter(current)
            return None
        if cancelled:
            self._stopping.cancel(cancelled)
        if end is None or (end.resumes and here.follows):
            return None
        return here.run_ended(end)

    def _lease_is_over(self) -> Outcome | None:
        """Ends an agent that was cut off for too long: the run may have gone on without it."""
        away_s = time.monotonic() - self._read_at
        if self._lease_s is None or away_s < self._lease_s:
            return None
        self._here.say(f"{self._here.folder.root} has been out of reach for {away_s:.0f} s: this node stops")
        return FENCED

    def _enter(self, generation: int) -> None:
        """Goes on into a later life of the run. The processes notice it by themselves."""
        self._here.say(f"life {generation} of the run has begun: going on with it")
        self._here.generation = generation
        for watched in self._here.watched:
            watched.env["VERST_GENERATION"] = str(generation)
            watched.restarts = 0
