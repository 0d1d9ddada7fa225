"""The controller as a pure state machine: events in, commands out; no sockets, clocks or tasks inside.

Each optimiser step makes one weight version. The first `warm_start_steps` steps are supervised. The rest are
reinforcement learning on prompt groups; `groups.py` keeps track of them and bounds their staleness. `fleet.py`
keeps track of the engines, and `dispatch.py` gives them prompts. `loop_state.py` holds all of these and decides
what the run needs next.

In the colocated layout the trainer and the engines take turns on the same GPUs (`turns.py`). The next action
determines whose turn it must be. The turn passes once nobody is working and no engine is starting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.dispatch import send_evaluation, send_groups
from verst.runtime.controller.state_machine.drops import Drop
from verst.runtime.controller.state_machine.fleet import Engine
from verst.runtime.controller.state_machine.loop_state import LoopState
from verst.runtime.controller.state_machine.turns import Next, Turns


class Controller(LoopState):
    """Decides what the run does: `start` gives the first commands, `handle` those that follow from an event."""

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
        return _reports(self.unfit_at_start) + self._advance()

    def _advance(self) -> list[ev.Command]:
        """Begins the next action, unless the trainer is busy: the algorithm's outer loop."""
        if self.busy:
            return []
        what = self.next_action()
        if self.turns is not None and self.turns.must_pass(what):
            return self._pass_turn(self.turns, what)
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

    def _sync(self) -> list[ev.Command]:
        return self._occupy("weight sync", ev.SyncWeights(self.version, self.fleet.begin_sync()))

    def _train(self) -> list[ev.Command]:
        return self._occupy("step", ev.Train(self.version, self.groups.begin_step()))

    def _end(self) -> list[ev.Command]:
        if (asked := self.stop_asked_for) is not None:
            return self._finish(ok=False, reason=asked.reason, stopped=True, hopeless=asked.hopeless)
        return self._finish(ok=True, reason=f"trained {self.settings.steps} steps")

    def _pass_turn(self, turns: Turns, what: Next) -> list[ev.Command]:
        """Passes the turn for `what` once nobody is working, or at once if the run has to stop."""
        forced = self.stop_asked_for is not None
        working = self.fleet.working()
        if (working or turns.starting) and not forced:
            return []
        for engine in working:
            self._take_back(engine)
        return self._occupy("turn", turns.passing(what, tuple(sorted(self.engines))))

    def _save(self) -> list[ev.Command]:
        self.groups.begin_save(self.version)
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
        if self.turns is not None and event.engine not in self.turns.starting:
            self._engine_lost(event.engine)
            return [ev.Refuse(event.engine)]
        self._engine_lost(event.engine)  # a new incarnation: the earlier one's work is lost
        self.fleet.join(event.engine)
        return []

    def _engine_waits(self, event: ev.EngineWaits) -> None:
        self._engine_lost(event.engine)
        if self.turns is not None:
            self.turns.waiting.add(event.engine)

    def _engine_lost(self, engine: int) -> None:
        lost = self.fleet.leave(engine)
        if self.turns is not None:
            self.turns.forget(engine)
        if lost is not None:
            self._take_back(lost)

    def _take_back(self, engine: Engine) -> None:
        """Puts an engine's prompts in flight back into the queues, for any engine."""
        groups, evals = self.fleet.take_back(engine)
        self.groups.requeue(groups)
        self.evals.requeue(evals)

    def _turn_passed(self, event: ev.TurnPassed) -> None:
        assert self.turns is not None
        self.busy = None
        self.turns.turn = event.turn
        for engine in event.lost:
            if engine in self.engines:  # else its next worker has come and waits to start it
                self._engine_lost(engine)
        if event.turn == "trainer":  # the engines gave up their memory, and with it their weights
            self.fleet.weights_dropped()

    def _prompts_wanted(self, event: ev.PromptsWanted) -> None:
        self.fleet.asks(event.engine, event.room)

    def _group_accepted(self, event: ev.GroupAccepted) -> list[ev.Command]:
        self.fleet.finished(event.meta.id, evaluation=False)
        dropped = self.groups.accept(event.meta, self.version)
        if not dropped:
            self.drops.kept()
        return self._dropped(dropped)

    def _group_dropped(self, event: ev.GroupDropped) -> list[ev.Command]:
        self.fleet.finished(event.id, evaluation=False)
        counts = self.groups.drop(event.id)
        return self._dropped([Drop(event.id, event.reason, event.detail)] if counts else [])

    def _dropped(self, drops: list[Drop]) -> list[ev.Command]:
        """Counts dropped groups. The run stops, and saves, once too many in a row were dropped."""
        warnings = [warning for drop in drops if (warning := self.drops.add(drop)) is not None]
        if (reason := self.drops.too_many()) is not None:
            self._stop_asked(ev.StopAsked(reason, hopeless=True))
        return [*_reports(drops), *warnings]

    def _group_failed(self, event: ev.GroupFailed) -> list[ev.Command]:
        what = f"{'evaluation prompt' if event.evaluation else 'prompt group'} {event.id}"
        if event.fatal:
            return self._finish(ok=False, reason=f"{what}: {event.reason}", hopeless=True)
        if event.evaluation and not self.evals.runs(event.version):
            return []
        self.fleet.finished(event.id, evaluation=event.evaluation)
        attempts = (self.evals if event.evaluation else self.groups).failed(event.id)
        if attempts >= self.settings.max_attempts:
            return self._finish(ok=False, reason=f"{what} failed {attempts} times, last: {event.reason}")
        return []

    def _eval_scored(self, event: ev.EvalScored) -> list[ev.Command]:
        if not self.evals.runs(event.version):
            return []  # of an engine that was taken for lost; another one answered
        self.fleet.finished(event.id, evaluation=True)
        report = self.evals.scored(event.id, event.score)
        return [] if report is None else [report]

    def _trained(self, event: ev.Trained) -> list[ev.Command]:
        self.busy = None
        self.version = event.version
        self.fleet.weights_outdated()
        self.groups.end_step()
        return _reports(self.groups.expire(event.version))

    def _synced(self, event: ev.Synced) -> None:
        self.busy = None
        failed = (engine for engine, _ in event.failed)
        for engine in self.fleet.end_sync(event.version, event.updated, failed):
            self._engine_lost(engine)

    def _save_started(self, event: ev.SaveStarted) -> None:
        self.busy = None
        self.saved_version = event.version

    def _saved(self, event: ev.Saved) -> list[ev.Command]:
        ids = self.groups.end_save(event.version)
        return [ev.Discard(ids)] if ids else []

    def _exported_done(self, event: ev.Exported) -> None:
        self.busy = None
        self.exported = True

    def _stop_asked(self, event: ev.StopAsked) -> None:
        self.stop_asked_for = self.stop_asked_for or event

    # --- prompts ------------------------------------------------------------------------------------

    def _dispatch(self) -> list[ev.Command]:
        """Sends prompts to the engines that asked, evaluation prompts first."""
        commands: list[ev.Command] = []
        if self.stop_asked_for is not None or self.version < self.settings.warm_start_steps:
            return commands
        if self.turns is not None:
            if self.busy or self.turns.turn != "engines":
                return commands
            commands += self.turns.let_start()
        settings = self.settings
        if self.evals.running:
            samples = settings.eval_samples
            room = settings.room_for(samples)
            return commands + send_evaluation(self.fleet, self.evals, samples, room, self.version)
        if self.version < settings.last_version and not self.evals.due(self.version):
            samples = settings.samples_per_prompt
            room = settings.room_for(samples)
            commands += send_groups(self.fleet, self.groups, samples, room, self.version)
        return commands

    def _occupy(self, what: str, command: ev.Command) -> list[ev.Command]:
        self.busy = what
        return [command]

    def _finish(
        self, *, ok: bool, reason: str, stopped: bool = False, hopeless: bool = False
    ) -> list[ev.Command]:
        self.finished = True
        return [ev.Finish(ok, reason, stopped, hopeless)]


def _reports(drops: list[Drop]) -> list[ev.Command]:
    return [ev.ReportDropped(*drop) for drop in drops]
