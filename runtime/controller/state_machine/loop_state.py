"""The state of the training loop, and the choice of the next action."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.drops import Drops
from verst.runtime.controller.state_machine.early_stop import EarlyStop, EarlyStopRule, EarlyStopState
from verst.runtime.controller.state_machine.evaluations import EvalSet, Evaluations
from verst.runtime.controller.state_machine.fleet import Engine, Fleet
from verst.runtime.controller.state_machine.groups import Groups
from verst.runtime.controller.state_machine.id_set import IdSet
from verst.runtime.controller.state_machine.turns import Next, Turns
from verst.runtime.messages.sample import GroupMeta


@dataclass(frozen=True)
class Settings:
    """The recipe's settings of the loop."""

    steps: int  # of the policy; 0: nothing is generated
    prompts_per_step: int
    samples_per_prompt: int
    staleness: int
    in_order: bool  # train groups strictly in dataset order (sync, one_step_off), not as they finish
    offline_steps: int  # before the policy's steps, on rows of data files; need no engine
    checkpoint_interval: int
    min_engines: int  # 0 if nothing is generated
    evals: tuple[EvalSet, ...] = ()  # none: no evaluation
    eval_engines: int | None = None  # most engines that an evaluation uses; None: all
    early_stop: EarlyStopRule | None = None
    colocated: bool = False  # trainer and engines take turns on the same GPUs; only in mode sync
    max_attempts: int = 3  # failures of one group that end the run; how often a prompt is issued at most
    concurrency: int | None = (
        None  # samples that an idle engine has room for; None: as many as one prompt has
    )
    max_sample_tokens: int | None = None  # the longest sample that the trainer can take; None: no limit
    max_dropped_in_a_row: int = 1000  # if more groups than this are dropped in a row, the run ends
    filter: str | None = None  # the recipe's group filter, for messages
    generate_only: bool = False  # the groups of each step are kept, and none is trained on
    last_recorded: int | None = None  # with a recording: the step after which the run just ends

    @property
    def last_version(self) -> int:
        return self.offline_steps + self.steps

    def room_for(self, samples: int) -> int:
        """The room that an engine needs for a prompt with so many samples: at most what it has when it is idle.

        Its worker generates `concurrency` of them at a time.
        """
        return samples if self.concurrency is None else min(samples, self.concurrency)


class SavedState(msgspec.Struct, kw_only=True):
    """The controller's part of a checkpoint."""

    version: int
    trained_below: int  # every prompt below this number is trained or dropped
    trained_above: list[int]  # and these prompts are, too
    evaluated: dict[int, list[str]] = {}  # by version, the sets that have been evaluated
    evaluating: int | None = None  # the version whose evaluation was under way
    early_stop: EarlyStopState = msgspec.field(default_factory=EarlyStopState)
    reissues: dict[
        int, int
    ] = {}  # of other prompts, how often each was issued again because its group was too old
    # Of groups that an earlier life made and that wait to be trained on, by number: `GroupMeta.common_version`.
    common_versions: dict[int, int] = {}
    curricula: bytes = b""  # `controller/curricula.py`


class LoopState:
    """Knows what is done and what is under way, and answers questions about it. `Controller` changes it."""

    def __init__(
        self,
        settings: Settings,
        saved: SavedState | None = None,
        journalled: Iterable[GroupMeta] = (),
        recorded: Mapping[int, tuple[GroupMeta, ...]] | None = None,
    ) -> None:
        """`recorded`: the groups of each step, if they are those of another run; nothing is generated then."""
        self.settings = settings
        self.recorded = recorded
        self.version = saved.version if saved else 0
        self.busy: str | None = None  # what the trainer is doing now
        self.finished = False
        done = IdSet(saved.trained_below, saved.trained_above) if saved else IdSet()
        self.groups = Groups(
            settings.prompts_per_step,
            settings.staleness,
            settings.in_order,
            done,
            reissues=saved.reissues if saved else None,
            max_issues=settings.max_attempts,
            max_tokens=settings.max_sample_tokens,
        )
        self.drops = Drops(settings.max_dropped_in_a_row, settings.filter)
        self.unfit_at_start = self.groups.restore(
            journalled, self.version, saved.common_versions if saved else {}
        )
        self.evals = Evaluations(
            settings.evals,
            settings.offline_steps,
            settings.last_version,
            saved.evaluated if saved else None,
        )
        self.early_stop = EarlyStop(settings.early_stop, saved.early_stop if saved else None)
        self.last_version = settings.last_version  # an early stop lowers it
        # Why: the last version's own evaluation comes after the decision, and is no part of it.
        self.stopped_early: str | None = None
        # The version whose evaluation an earlier life could not complete, if its weights are gone.
        self.lost_eval = saved.evaluating if saved and saved.evaluating != saved.version else None
        self.fleet = Fleet()
        self.saved_version = self.version if saved else -1
        self.exported = False
        self.kept_steps = 0  # with generate_only: how many steps' groups are complete
        self.stop_asked_for: ev.StopAsked | None = None
        self.turns = Turns() if settings.colocated else None

    @property
    def engines(self) -> Mapping[int, Engine]:
        """The engines that serve, by number."""
        return self.fleet.engines

    def next_action(self) -> Next:
        """What the run needs next. Begins an evaluation when one is due, and none is running.

        "rollout" means that the run waits for groups, scores or engines, which come by themselves.
        """
        settings = self.settings
        if self.stop_asked_for is not None and settings.generate_only:
            return "finish"  # another life begins again with the groups that are journalled
        if self.stop_asked_for is not None:
            return "checkpoint" if self.saved_version != self.version else "finish"
        if self.version < settings.offline_steps:
            return "checkpoint" if self._checkpoint_due() else "offline step"
        if settings.generate_only and self.kept_steps >= settings.steps:
            return "finish"
        if self.recorded is not None:
            ended = settings.last_recorded is not None and self.version >= settings.last_recorded
            return "finish" if ended else self._next_without_engines()
        if self.turns is not None:
            if self.turns.turn == "trainer" and self._checkpoint_due():
                return "checkpoint"  # before the evaluation: after it, two more turns would be needed
            if not self._engines_needed():
                return self._next_without_engines()
        if self.fleet.behind and len(self.engines) >= settings.min_engines:
            return "weight sync"
        if len(self.engines) - len(self.fleet.behind) < settings.min_engines or not self._eval_begun():
            return "rollout"
        if self.turns is not None:  # the trainer's turn comes when they are done
            return "rollout"
        return self._next_without_engines()

    def _engines_needed(self) -> bool:
        """Whether the engines have to generate something before the trainer can go on."""
        if self.evals.running or self.evals.due(self.version):
            return True
        return self.version < self.last_version and not self.groups.ready()

    def _next_without_engines(self) -> Next:
        if self.settings.generate_only:
            return "keep" if self.groups.ready() else "rollout"
        if self._checkpoint_due():
            return "checkpoint"
        if self.version >= self.last_version:
            if self.evals.running:
                return "rollout"
            return "finish" if self.exported else "export"
        return "step" if self.recorded is not None or self.groups.ready() else "rollout"

    def _eval_begun(self) -> bool:
        """Begins the evaluation of this version if it is due. False: it has to wait for the one before, or for engines.

        The trainer goes on while an evaluation runs, but does not leave a version that is due before its own begins.
        """
        if not self.evals.due(self.version):
            return True
        if self.evals.running or not self.fleet.hold(self.version, self.settings.eval_engines):
            return False
        self.evals.begin(self.version)
        return True

    def _checkpoint_due(self) -> bool:
        if self.saved_version == self.version or self.version == 0 or self.settings.generate_only:
            return False
        at_interval = self.version % self.settings.checkpoint_interval == 0
        return at_interval or self.version == self.last_version

    def saved_state(self) -> SavedState:
        """The controller's part of a checkpoint, as of now."""
        return SavedState(
            version=self.version,
            trained_below=self.groups.done.below,
            trained_above=sorted(self.groups.done.above),
            evaluated={version: sorted(names) for version, names in self.evals.done.items()},
            evaluating=self.evals.version if self.evals.running else None,
            early_stop=self.early_stop.state,
            reissues=dict(self.groups.reissues),
            common_versions=self.groups.common_versions(),
        )

    def engines_missing(self) -> int:
        """The number of engines that the run waits for; 0 if it has enough or needs none now."""
        if self.busy or self.finished or self.version < self.settings.offline_steps:
            return 0
        return max(0, self.settings.min_engines - len(self.engines))

    def progress(self) -> tuple[int, int]:
        """The number of accepted groups for the next step, and the number that it needs."""
        return min(self.groups.accepted, self.settings.prompts_per_step), self.settings.prompts_per_step
