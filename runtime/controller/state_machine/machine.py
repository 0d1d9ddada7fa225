"""The controller as a pure state machine: events in, commands out; no sockets, clocks or tasks inside.

Each optimiser step makes one weight version. The first `offline_steps` steps train on rows of data files. The rest,
if there are any, are reinforcement learning on prompt groups; `groups.py` keeps track of them and bounds their
staleness. `fleet.py` keeps track of the engines, and `dispatch.py` gives them prompts. `loop_state.py` holds all of
these and decides what the run needs next.

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
        commands = _reports(self.unfit_at_start)
        if self.lost_eval is not None:
            commands.append(ev.EvalEnded(self.lost_eval, "during", lost=True))
        return [*commands, *self._stop_early(), *self._advance()]

    def _advance(self) -> list[ev.Command]:
        """Begins the next action, unless the trainer is busy: the algorithm's outer loop."""
        if self.busy:
            return []
        what = self.next_action()
        if self.turns is not None and self.turns.must_pass(what):
            return self._pass_turn(self.turns, what)
        begin: dict[Next, Callable[[], list[ev.Command]]] = {
            "offline step": lambda: self._occupy("offline step", ev.TrainOffline(self.version)),
            "weight sync": self._sync,
            "checkpoint": self._save,
            "step": self._train,
            "keep": self._keep,
            "export": lambda: self._occupy("export", ev.Export()),
            "finish": self._end,
            "rollout": list,
        }
        return begin[what]()

    def _sync(self) -> list[ev.Command]:
        return self._occupy("weight sync", ev.SyncWeights(self.version, self.fleet.begin_sync()))

    def _train(self) -> list[ev.Command]:
        step = self.version + 1
        groups = self.groups.begin_step() if self.recorded is None else self.recorded[step]
        return self._occupy("step", ev.Train(self.version, groups))

    def _keep(self) -> list[ev.Command]:
        step = self.version + self.kept_steps + 1
        return self._occupy("keep", ev.KeepGroups(step, self.groups.begin_step()))

    def _end(self) -> list[ev.Command]:
        if (asked := self.stop_asked_for) is not None:
            return self._finish(ok=False, reason=asked.reason, stopped=True, hopeless=asked.hopeless)
        if self.settings.generate_only:
            return self._finish(ok=True, reason=f"generated the groups of {self.settings.steps} steps")
        steps = self.version - self.settings.offline_steps if self.settings.steps else self.version
        stopped = f" of {self.settings.steps}: {self.stopped_early}" if self.stopped_early else ""
        return self._finish(ok=True, reason=f"trained {steps} steps{stopped}")

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
            ev.EngineLost: self._engine_gone,
            ev.PromptsWanted: self._prompts_wanted,
            ev.GroupAccepted: self._group_accepted,
            ev.GroupDropped: self._group_dropped,
            ev.GroupFailed: self._group_failed,
            ev.EvalScored: self._eval_scored,
            ev.Trained: self._trained,
            ev.Kept: self._kept,
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
        return self._eval_lost()

    def _engine_waits(self, event: ev.EngineWaits) -> None:
        self._engine_lost(event.engine)
        if self.turns is not None:
            self.turns.waiting.add(event.engine)

    def _engine_gone(self, event: ev.EngineLost) -> list[ev.Command]:
        self._engine_lost(event.engine)
        return self._eval_lost()

    def _eval_lost(self) -> list[ev.Command]:
        """Gives the running evaluation other engines. Ends it if no engine has its weights, nor will ever have them."""
        if not self.evals.running or self.fleet.enough_held():
            return []
        if (
            self.fleet.hold(self.evals.version, self.settings.eval_engines)
            or self.version == self.evals.version
        ):
            return []
        self.evals.give_up()
        return [ev.EvalEnded(self.evals.version, self.evals.moment(), lost=True)]

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
        what = (
            f"evaluation prompt {self._eval_place(event.id)}"
            if event.evaluation
            else f"prompt group {event.id}"
        )
        if event.fatal:
            return self._finish(ok=False, reason=f"{what}: {event.reason}", hopeless=True)
        if event.evaluation and not self.evals.runs(event.version):
            return []
        self.fleet.finished(event.id, evaluation=event.evaluation)
        attempts = (self.evals if event.evaluation else self.groups).failed(event.id)
        if attempts >= self.settings.max_attempts:
            return self._finish(ok=False, reason=f"{what} failed {attempts} times, last: {event.reason}")
        return []

    def _eval_place(self, id: int) -> str:
        each, row = self.evals.place(id)
        return f"{row} of {each.name}"

    def _eval_scored(self, event: ev.EvalScored) -> list[ev.Command]:
        if not self.evals.runs(event.version):
            return []  # of an engine that was taken for lost; another one answered
        self.fleet.finished(event.id, evaluation=True)
        report = self.evals.scored(event.id, event.answers)
        if report is None:
            return []
        self.early_stop.note(report.version, report.set, report.figures)
        if self.evals.running:
            return [report]
        self.fleet.release()
        ended = ev.EvalEnded(report.version, report.when)
        return [report, ended, *self._stop_early()]

    def _stop_early(self) -> list[ev.Command]:
        """Makes the version that the trainer has, or makes just now, the last one if evaluations get no better."""
        last = self.version + (self.busy == "step")
        reason = self.early_stop.reason
        if reason is None or last >= self.last_version:
            return []
        self.last_version, self.stopped_early = last, reason
        self.evals.stop_at(last)
        return [ev.StopEarly(last, reason)]

    def _trained(self, event: ev.Trained) -> list[ev.Command]:
        self.busy = None
        self.version = event.version
        self.fleet.weights_outdated()
        self.groups.end_step()
        return [*_reports(self.groups.expire(event.version)), *self._eval_lost()]

    def _kept(self, event: ev.Kept) -> None:
        self.busy = None
        self.kept_steps += 1
        self.groups.end_step()

    def _synced(self, event: ev.Synced) -> list[ev.Command]:
        self.busy = None
        failed = (engine for engine, _ in event.failed)
        for engine in self.fleet.end_sync(event.version, event.updated, failed):
            self._engine_lost(engine)
        if self.evals.running and event.version == self.evals.version:
            self.fleet.hold(event.version, self.settings.eval_engines)
        return self._eval_lost()

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
        if self.stop_asked_for is not None or self.version < self.settings.offline_steps:
            return commands
        if self.turns is not None:
            if self.busy or self.turns.turn != "engines":
                return commands
            commands += self.turns.let_start()
        # Without staleness the engines have nothing else to do while the trainer trains: then they evaluate. With it
        # they always have other prompts, and an evaluation has to be done before those fill up the bound.
        order = [self._send_groups, self._send_evaluation]
        for send in order if self.settings.staleness == 0 else reversed(order):
            commands += send()
        return commands

    def _send_evaluation(self) -> list[ev.SendPrompts]:
        return send_evaluation(self.fleet, self.evals, self.settings.room_for)

    def _send_groups(self) -> list[ev.SendPrompts]:
        if self.version >= self.last_version:
            return []
        samples = self.settings.samples_per_prompt
        return send_groups(self.fleet, self.groups, samples, self.settings.room_for(samples), self.version)

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
