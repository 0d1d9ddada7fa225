"""The controller as a state machine: events in, commands out; no sockets, clocks or tasks inside.

One weight version is one optimiser step: the first `warm_start_steps` are supervised, the rest are
reinforcement learning, on prompt groups (`groups.py`, which bounds their staleness).

In the colocated layout trainer and engines take turns on the same GPUs (`turns.py`): what comes next says whose
turn it must be, and the turn passes when nobody works and no engine is starting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from verst.runtime.controller import events as ev
from verst.runtime.controller.askers import Askers
from verst.runtime.controller.evaluations import Evaluations
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


@dataclass
class Engine:
    """One engine as the controller sees it."""

    version: int = -1  # of its weights, as synced in this life of the run; -1: none yet
    room: int = 0  # samples it asked for and did not get yet
    groups: set[int] = field(default_factory=set)  # in flight
    evals: set[int] = field(default_factory=set)


class Controller:
    """Decides; see the module's docstring. `handle` is the only entry."""

    def __init__(
        self, settings: Settings, saved: SavedState | None = None, journalled: Iterable[GroupMeta] = ()
    ) -> None:
        self.settings = settings
        self.version = saved.version if saved else 0
        self.engines: dict[int, Engine] = {}
        self.busy: str | None = None  # what the trainer does now
        self.finished = False
        done = IdSet(saved.trained_below, saved.trained_above) if saved else IdSet()
        self._groups = Groups(
            settings.prompts_per_step, settings.staleness, settings.in_order, done, journalled
        )
        self._evals = Evaluations(
            settings.eval_prompts,
            settings.eval_interval,
            settings.warm_start_steps,
            settings.last_version,
            saved.evaluated if saved else (),
        )
        self._behind: set[int] = set()  # engines without the current weights
        self._asking = Askers()  # engines with room
        self._holders: dict[tuple[bool, int], Engine] = {}  # (evaluation?, id) -> where it is in flight
        self._syncing: dict[int, Engine] = {}  # the engines of the round in progress
        self._saved_version = self.version if saved else -1
        self._exported = False
        self._stop_asked_for: ev.StopAsked | None = None
        self._turns = Turns() if settings.colocated else None

    # --- the loop -----------------------------------------------------------------------------------

    def handle(self, event: ev.Event) -> list[ev.Command]:
        """Takes one event and returns what to do now, in order."""
        if self.finished:
            return []
        commands = self._absorb(event)
        if not self.finished:
            commands += self._advance()
        if not self.finished:
            commands += self._dispatch()
        return commands

    def start(self) -> list[ev.Command]:
        """The first commands, before any event."""
        return self._advance()

    def _advance(self) -> list[ev.Command]:
        """The next thing, unless the trainer is at one: the algorithm's outer loop."""
        if self.busy:
            return []
        what = self._next()
        if self._turns is not None and self._turns.must_pass(what):
            return self._pass_turn(self._turns, what)
        begin: dict[Next, Callable[[], list[ev.Command]]] = {
            "warm start": lambda: self._occupy("warm start", ev.WarmStart(self.version)),
            "weight sync": self._sync,
            "checkpoint": self._save,
            "step": self._train,
            "export": lambda: self._occupy("export", ev.Export()),
            "finish": self._end,
            "rollout": list,
        }
        return begin[what]()

    def _next(self) -> Next:
        """What the run needs next; "rollout": groups, scores or engines, which come by themselves."""
        settings = self.settings
        if self._stop_asked_for is not None:
            return "checkpoint" if self._saved_version != self.version else "finish"
        if self.version < settings.warm_start_steps:
            return "warm start"
        if self._turns is not None:
            if self._turns.turn == "trainer" and self._checkpoint_due():
                return "checkpoint"  # before its evaluation: later it would take two turns more
            if not self._engines_needed():
                return self._next_without_engines()
        if self._behind and len(self.engines) >= settings.min_engines:
            return "weight sync"
        if len(self.engines) - len(self._behind) < settings.min_engines or self._eval_running():
            return "rollout"
        return self._next_without_engines()

    def _engines_needed(self) -> bool:
        """Whether there is something to generate before the trainer can go on."""
        if self._evals.running or self._evals.due(self.version):
            return True
        return self.version < self.settings.last_version and not self._groups.ready()

    def _next_without_engines(self) -> Next:
        if self._checkpoint_due():
            return "checkpoint"
        if self.version >= self.settings.last_version:
            return "finish" if self._exported else "export"
        return "step" if self._groups.ready() else "rollout"

    def _sync(self) -> list[ev.Command]:
        behind = tuple(sorted(self._behind))
        self._syncing = {e: self.engines[e] for e in behind}
        return self._occupy("weight sync", ev.SyncWeights(self.version, behind))

    def _train(self) -> list[ev.Command]:
        return self._occupy("step", ev.Train(self.version, self._groups.begin_step()))

    def _end(self) -> list[ev.Command]:
        if (asked := self._stop_asked_for) is not None:
            return self._finish(ok=False, reason=asked.reason, stopped=True, hopeless=asked.hopeless)
        return self._finish(ok=True, reason=f"trained {self.settings.steps} steps")

    def _pass_turn(self, turns: Turns, what: Next) -> list[ev.Command]:
        """Passes the turn to whom `what` needs, once nobody works; at once when the run has to stop."""
        forced = self._stop_asked_for is not None
        working = [engine for engine in self.engines.values() if engine.groups or engine.evals]
        if (working or turns.starting) and not forced:
            return []
        for engine in working:
            self._take_back(engine)
        return self._occupy("turn", turns.passing(what, tuple(sorted(self.engines))))

    def _save(self) -> list[ev.Command]:
        self._groups.begin_save(self.version)
        return self._occupy("checkpoint", ev.SaveCheckpoint(self.version))

    # --- events -------------------------------------------------------------------------------------

    def _absorb(self, event: ev.Event) -> list[ev.Command]:
        absorb: dict[type, Callable[[Any], list[ev.Command] | None]] = {
            ev.EngineReady: self._engine_ready,
            ev.EngineWaits: self._engine_waits,
            ev.EngineLost: lambda e: self._engine_lost(e.engine),
            ev.PromptsWanted: self._prompts_wanted,
            ev.GroupAccepted: self._group_accepted,
            ev.GroupDropped: self._group_dropped,
            ev.GroupFailed: self._group_failed,
            ev.EvalScored: self._eval_scored,
            ev.Trained: self._trained,
            ev.Synced: self._synced,
            ev.TurnPassed: self._turn_passed,
            ev.SaveStarted: self._save_started,
            ev.Saved: self._saved,
            ev.Exported: self._exported_done,
            ev.StopAsked: self._stop_asked,
        }
        return absorb[type(event)](event) or []

    def _engine_ready(self, event: ev.EngineReady) -> list[ev.Command]:
        if self._turns is not None and event.engine not in self._turns.starting:
            self._engine_lost(event.engine)
            return [ev.Refuse(event.engine)]
        self._engine_lost(event.engine)  # a new incarnation: what the earlier one had in flight is gone
        self.engines[event.engine] = Engine()
        self._behind.add(event.engine)
        return []

    def _engine_waits(self, event: ev.EngineWaits) -> None:
        self._engine_lost(event.engine)
        if self._turns is not None:
            self._turns.waiting.add(event.engine)

    def _engine_lost(self, engine: int) -> None:
        lost = self.engines.pop(engine, None)
        self._asking.discard(engine)
        self._behind.discard(engine)
        if self._turns is not None:
            self._turns.forget(engine)
        if lost is not None:
            self._take_back(lost)

    def _take_back(self, engine: Engine) -> None:
        """What an engine has in flight is given to others, or to itself later."""
        groups, evals, engine.groups, engine.evals = engine.groups, engine.evals, set(), set()
        for id in groups:
            self._holders.pop((False, id), None)
        for id in evals:
            self._holders.pop((True, id), None)
        self._groups.requeue(groups)
        self._evals.requeue(evals)

    def _turn_passed(self, event: ev.TurnPassed) -> None:
        assert self._turns is not None
        self.busy = None
        self._turns.turn = event.turn
        for engine in event.lost:
            if engine in self.engines:  # else its next worker has come meanwhile, and waits to start it
                self._engine_lost(engine)
        if event.turn == "trainer":  # an engine that gives its memory back keeps no weights
            for number, engine_ in self.engines.items():
                engine_.version = -1
                self._behind.add(number)
                if number in self._asking:
                    self._asking.put(number, -1, engine_.room)

    def _prompts_wanted(self, event: ev.PromptsWanted) -> None:
        engine = self.engines.get(event.engine)
        if engine is not None:
            engine.room = event.room
            self._asking.put(event.engine, engine.version, event.room)

    def _group_accepted(self, event: ev.GroupAccepted) -> None:
        self._forget_holder(False, event.meta.id)
        self._groups.accept(event.meta)

    def _group_dropped(self, event: ev.GroupDropped) -> None:
        self._forget_holder(False, event.id)
        self._groups.drop(event.id)

    def _group_failed(self, event: ev.GroupFailed) -> list[ev.Command]:
        what = f"{'evaluation prompt' if event.evaluation else 'prompt group'} {event.id}"
        if event.fatal:
            return self._finish(ok=False, reason=f"{what}: {event.reason}", hopeless=True)
        self._forget_holder(event.evaluation, event.id)
        attempts = (self._evals if event.evaluation else self._groups).failed(event.id)
        if attempts >= self.settings.max_attempts:
            return self._finish(ok=False, reason=f"{what} failed {attempts} times, last: {event.reason}")
        return []

    def _eval_scored(self, event: ev.EvalScored) -> list[ev.Command]:
        self._forget_holder(True, event.id)
        report = self._evals.scored(event.id, event.score, self.version)
        return [] if report is None else [report]

    def _trained(self, event: ev.Trained) -> None:
        self.busy = None
        self.version = event.version
        self._behind = set(self.engines)
        self._groups.end_step()

    def _synced(self, event: ev.Synced) -> None:
        self.busy = None
        syncing, self._syncing = self._syncing, {}
        for number in event.updated:
            engine = self.engines.get(number)
            if engine is not None and engine is syncing.get(number):  # not a later incarnation of it
                engine.version = event.version
                self._behind.discard(number)
                if number in self._asking:
                    self._asking.put(number, engine.version, engine.room)
        for number, _ in event.failed:
            if self.engines.get(number) is syncing.get(number):
                self._engine_lost(number)

    def _save_started(self, event: ev.SaveStarted) -> None:
        self.busy = None
        self._saved_version = event.version

    def _saved(self, event: ev.Saved) -> list[ev.Command]:
        ids = self._groups.end_save(event.version)
        return [ev.Discard(ids)] if ids else []

    def _exported_done(self, event: ev.Exported) -> None:
        self.busy = None
        self._exported = True

    def _stop_asked(self, event: ev.StopAsked) -> None:
        self._stop_asked_for = self._stop_asked_for or event

    # --- prompts ------------------------------------------------------------------------------------

    def _dispatch(self) -> list[ev.Command]:
        """Gives prompts to the engines that asked, evaluation first."""
        commands: list[ev.Command] = []
        if self._stop_asked_for is not None or self.version < self.settings.warm_start_steps:
            return commands
        if self._turns is not None:
            if self.busy or self._turns.turn != "engines":
                return commands
            commands += self._turns.let_start()
        evaluating = self._evals.running
        while (number := self._next_asker()) is not None:
            engine = self.engines[number]
            ids = self._take_evals(engine) if evaluating else self._take_groups(engine)
            self._asking.discard(number)
            commands.append(ev.SendPrompts(number, tuple(ids), evaluating))
        return commands

    def _next_asker(self) -> int | None:
        """The engine to serve next: there is at least one prompt for it, and room."""
        if self._evals.running:
            if not self._evals.waiting:
                return None
            return self._asking.first(self.settings.eval_samples, lambda version: version == self.version)
        if self.version >= self.settings.last_version or self._evals.due(self.version):
            return None
        return self._asking.first(
            self.settings.samples_per_prompt, lambda version: version >= 0 and self._allowance(version) > 0
        )

    def _take_evals(self, engine: Engine) -> list[int]:
        ids = self._evals.take(engine.room // self.settings.eval_samples)
        engine.evals.update(ids)
        self._holders.update(((True, id), engine) for id in ids)
        engine.room -= len(ids) * self.settings.eval_samples
        return ids

    def _take_groups(self, engine: Engine) -> list[int]:
        ids: list[int] = []
        allowance = self._allowance(engine.version)
        while engine.room >= self.settings.samples_per_prompt and len(ids) < allowance:
            id = self._groups.issue()
            ids.append(id)
            engine.groups.add(id)
            self._holders[False, id] = engine
            engine.room -= self.settings.samples_per_prompt
        return ids

    def _allowance(self, version: int) -> int:
        """How many more groups may be given to an engine with weights of this version."""
        return self._groups.allowance(self.version - version)

    def _forget_holder(self, evaluation: bool, id: int) -> None:
        engine = self._holders.pop((evaluation, id), None)
        if engine is not None:
            (engine.evals if evaluation else engine.groups).discard(id)

    # --- what is due --------------------------------------------------------------------------------

    def _eval_running(self) -> bool:
        """Starts an evaluation when one is due; True until it is complete."""
        if not self._evals.running and self._evals.due(self.version):
            self._evals.begin()
        return self._evals.running

    def _checkpoint_due(self) -> bool:
        if self._saved_version == self.version or self.version == 0:
            return False
        at_interval = self.version % self.settings.checkpoint_interval == 0
        return at_interval or self.version == self.settings.last_version

    # --- small things -------------------------------------------------------------------------------

    def saved_state(self) -> SavedState:
        """What to put into a checkpoint now."""
        return SavedState(
            version=self.version,
            trained_below=self._groups.done.below,
            trained_above=sorted(self._groups.done.above),
            evaluated=sorted(self._evals.done),
        )

    def engines_missing(self) -> int:
        """How many engines the run waits for before it can go on; 0 while it has enough or needs none."""
        if self.busy or self.finished or self.version < self.settings.warm_start_steps:
            return 0
        return max(0, self.settings.min_engines - len(self.engines))

    def progress(self) -> tuple[int, int]:
        """Accepted groups of the next step, and how many it takes."""
        return min(self._groups.accepted, self.settings.prompts_per_step), self.settings.prompts_per_step

    def _occupy(self, what: str, command: ev.Command) -> list[ev.Command]:
        self.busy = what
        return [command]

    def _finish(
        self, *, ok: bool, reason: str, stopped: bool = False, hopeless: bool = False
    ) -> list[ev.Command]:
        self.finished = True
        return [ev.Finish(ok, reason, stopped, hopeless)]
