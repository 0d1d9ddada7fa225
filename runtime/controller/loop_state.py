"""Where the training loop stands, and what it needs next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from verst.runtime.controller import events as ev
from verst.runtime.controller.evaluations import Evaluations
from verst.runtime.controller.fleet import Engine, Fleet
from verst.runtime.controller.groups import Groups, IdSet
from verst.runtime.controller.turns import Next, Turns
from verst.runtime.messages.sample import GroupMeta


@dataclass(frozen=True)
class Settings:
    """What the recipe says about the loop."""

    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    staleness: int
    in_order: bool  # train groups strictly in dataset order (sync, one_step_off), else as they finish
    warm_start_steps: int
    checkpoint_interval: int
    eval_prompts: int  # 0: no evaluation
    eval_samples: int
    eval_interval: int | None
    min_engines: int
    colocated: bool = False  # trainer and engines take turns on the same GPUs; in mode sync alone
    max_attempts: int = 3  # of one group, before the run fails

    @property
    def last_version(self) -> int:
        return self.warm_start_steps + self.steps


class SavedState(msgspec.Struct, kw_only=True):
    """What a checkpoint holds of the controller."""

    version: int
    trained_below: int  # every group under this number is trained or dropped
    trained_above: list[int]  # and these
    evaluated: list[int]  # versions whose evaluation is done


class LoopState:
    """Knows what is done and what is under way, and answers questions about it. `Controller` changes it."""

    def __init__(
        self, settings: Settings, saved: SavedState | None = None, journalled: Iterable[GroupMeta] = ()
    ) -> None:
        self.settings = settings
        self.version = saved.version if saved else 0
        self.busy: str | None = None  # what the trainer does now
        self.finished = False
        done = IdSet(saved.trained_below, saved.trained_above) if saved else IdSet()
        self.groups = Groups(
            settings.prompts_per_step, settings.staleness, settings.in_order, done, journalled
        )
        self.evals = Evaluations(
            settings.eval_prompts,
            settings.eval_interval,
            settings.warm_start_steps,
            settings.last_version,
            saved.evaluated if saved else (),
        )
        self.fleet = Fleet()
        self.saved_version = self.version if saved else -1
        self.exported = False
        self.stop_asked_for: ev.StopAsked | None = None
        self.turns = Turns() if settings.colocated else None

    @property
    def engines(self) -> Mapping[int, Engine]:
        """The engines that serve, by number."""
        return self.fleet.engines

    def next_action(self) -> Next:
        """What the run needs next. Begins an evaluation when one is due.

        "rollout" means that the run waits for groups, scores or engines, which come by themselves.
        """
        settings = self.settings
        if self.stop_asked_for is not None:
            return "checkpoint" if self.saved_version != self.version else "finish"
        if self.version < settings.warm_start_steps:
            return "warm start"
        if self.turns is not None:
            if self.turns.turn == "trainer" and self._checkpoint_due():
                return "checkpoint"  # before its evaluation: later it would take two turns more
            if not self._engines_needed():
                return self._next_without_engines()
        if self.fleet.behind and len(self.engines) >= settings.min_engines:
            return "weight sync"
        if len(self.engines) - len(self.fleet.behind) < settings.min_engines or self._eval_running():
            return "rollout"
        return self._next_without_engines()

    def _engines_needed(self) -> bool:
        """Whether there is something to generate before the trainer can go on."""
        if self.evals.running or self.evals.due(self.version):
            return True
        return self.version < self.settings.last_version and not self.groups.ready()

    def _next_without_engines(self) -> Next:
        if self._checkpoint_due():
            return "checkpoint"
        if self.version >= self.settings.last_version:
            return "finish" if self.exported else "export"
        return "step" if self.groups.ready() else "rollout"

    def _eval_running(self) -> bool:
        """Starts an evaluation when one is due; True until it is complete."""
        if not self.evals.running and self.evals.due(self.version):
            self.evals.begin()
        return self.evals.running

    def _checkpoint_due(self) -> bool:
        if self.saved_version == self.version or self.version == 0:
            return False
        at_interval = self.version % self.settings.checkpoint_interval == 0
        return at_interval or self.version == self.settings.last_version

    def saved_state(self) -> SavedState:
        """What to put into a checkpoint now."""
        return SavedState(
            version=self.version,
            trained_below=self.groups.done.below,
            trained_above=sorted(self.groups.done.above),
            evaluated=sorted(self.evals.done),
        )

    def engines_missing(self) -> int:
        """How many engines the run waits for before it can go on; 0 while it has enough or needs none."""
        if self.busy or self.finished or self.version < self.settings.warm_start_steps:
            return 0
        return max(0, self.settings.min_engines - len(self.engines))

    def progress(self) -> tuple[int, int]:
        """Accepted groups of the next step, and how many it takes."""
        return min(self.groups.accepted, self.settings.prompts_per_step), self.settings.prompts_per_step
