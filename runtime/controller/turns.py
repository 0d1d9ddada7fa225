"""The colocated layout's turns: whose the GPUs are, and which engines may start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from verst.runtime.controller import events as ev

# What a run does next, see `LoopState.next_action`.
Next = Literal["warm start", "weight sync", "checkpoint", "step", "export", "finish", "rollout"]

# Whose turn it must be; a finish needs no GPU.
_TURN_OF: dict[Next, ev.Turn] = {
    "warm start": "trainer",
    "step": "trainer",
    "checkpoint": "trainer",
    "export": "trainer",
    "weight sync": "both",
    "rollout": "engines",
}


@dataclass
class Turns:
    """The trainer begins. An engine starts only in the engines' turn: starting takes the memory of all."""

    turn: ev.Turn = "trainer"
    waiting: set[int] = field(default_factory=set)  # engines whose workers ask to start them
    starting: set[int] = field(default_factory=set)  # those that may, and do not serve yet

    def must_pass(self, what: Next) -> bool:
        """Whether it is another's turn than the one that this needs."""
        return _TURN_OF.get(what, self.turn) != self.turn

    def passing(self, what: Next, engines: tuple[int, ...]) -> ev.PassTurn:
        """The command that brings the GPUs to whom `what` needs. `engines` serve."""
        starting, self.starting = tuple(sorted(self.starting)), set()
        return ev.PassTurn(_TURN_OF[what], self.turn, engines, starting)

    def let_start(self) -> list[ev.LetStart]:
        """Those that wait may start now."""
        let, self.waiting = sorted(self.waiting), set()
        self.starting.update(let)
        return [ev.LetStart(engine) for engine in let]

    def forget(self, engine: int) -> None:
        """The engine serves, or is gone."""
        self.waiting.discard(engine)
        self.starting.discard(engine)
