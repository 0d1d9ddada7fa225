"""Turns of the colocated layout: who has the GPUs, and which engines may start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from verst.runtime.controller.state_machine import events as ev

# What a run needs next, see `LoopState.next_action`.
Next = Literal["offline step", "weight sync", "checkpoint", "step", "keep", "export", "finish", "rollout"]

# Whose turn an action needs. To finish needs no GPU.
_TURN_OF: dict[Next, ev.Turn] = {
    "offline step": "trainer",
    "step": "trainer",
    "checkpoint": "trainer",
    "export": "trainer",
    "weight sync": "both",
    "rollout": "engines",
}


@dataclass
class Turns:
    """Whose turn it is. The trainer begins.

    An engine may start only in the engines' turn, because starting takes the whole memory of its GPUs.
    """

    turn: ev.Turn = "trainer"
    waiting: set[int] = field(default_factory=set)  # engines whose workers ask to start them
    starting: set[int] = field(default_factory=set)  # engines that may start and do not serve yet

    def must_pass(self, what: Next) -> bool:
        """Whether `what` needs the turn of somebody else."""
        return _TURN_OF.get(what, self.turn) != self.turn

    def passing(self, what: Next, engines: tuple[int, ...]) -> ev.PassTurn:
        """The command that passes the GPUs on for `what`. `engines` are all engines that serve."""
        starting, self.starting = tuple(sorted(self.starting)), set()
        return ev.PassTurn(_TURN_OF[what], self.turn, engines, starting)

    def let_start(self) -> list[ev.LetStart]:
        """Lets the waiting engines start."""
        let, self.waiting = sorted(self.waiting), set()
        self.starting.update(let)
        return [ev.LetStart(engine) for engine in let]

    def forget(self, engine: int) -> None:
        """Forgets an engine that serves now, or is gone."""
        self.waiting.discard(engine)
        self.starting.discard(engine)
