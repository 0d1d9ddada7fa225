"""The colocated layout on simulated worlds: nobody ever uses a GPU that another holds, and the run is the same."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.runtime.controller.state_machine.test_machine import BASE, World, meta
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.loop_state import SavedState, Settings
from verst.runtime.controller.state_machine.machine import Controller

COLOCATED = replace(BASE, colocated=True)


class SharedGpus(World):
    """A world whose trainer and engines hold the memory of the same GPUs; raises when two need it at once."""

    def __init__(self, controller: Controller, seed: int, loss: float = 0.0, engines: int = 2) -> None:
        super().__init__(controller, seed, loss, engines)
        self.turn: ev.Turn = "trainer"
        self.passing = False
        self.turns: list[ev.Turn] = []
        self.serving: set[int] = set()
        self.pending = [ev.EngineWaits(e) for e in range(engines)]

    def tick(self) -> None:
        if self.random.random() < self.loss and self.serving:
            self.lose(self.random.choice(sorted(self.serving)))
        super_loss, self.loss = self.loss, 0.0
        super().tick()
        self.loss = super_loss

    def lose(self, engine: int) -> None:
        self.working[engine], self.versions[engine] = [], -1
        self.serving.discard(engine)
        self.do(self.controller.handle(ev.EngineLost(engine, "power")))
        self.pending.append(ev.EngineWaits(engine))

    def engine_event(self, engine: int) -> ev.Event:
        if self.working[engine]:
            assert (self.turn, self.passing) == ("engines", False)
        return super().engine_event(engine)

    def do(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.PassTurn(turn, before, engines, starting):
                    assert before == self.turn != turn
                    forced = self.controller.stop_asked_for is not None
                    assert forced or not any(self.working.values())
                    assert forced or not starting
                    assert set(engines) == self.serving
                    self.working = {e: [] for e in self.working}
                    if turn == "trainer":
                        self.versions = dict.fromkeys(self.versions, -1)
                    self.turn, self.passing = turn, True
                    self.turns.append(turn)
                    self.pending.append(ev.TurnPassed(turn))
                case ev.LetStart(engine):
                    assert (self.turn, self.passing) == ("engines", False)
                    self.pending.append(ev.EngineReady(engine))
                case ev.SendPrompts():
                    assert (self.turn, self.passing) == ("engines", False)
                    assert self.versions[command.engine] == self.controller.version
                case ev.SyncWeights():
                    assert (self.turn, self.passing) == ("both", False)
                case ev.Train() | ev.TrainOffline() | ev.SaveCheckpoint() | ev.Export():
                    assert (self.turn, self.passing) == ("trainer", False)
        super().do([c for c in commands if not isinstance(c, ev.PassTurn | ev.LetStart)])

    def handle_pending(self, event: ev.Event) -> None:
        if isinstance(event, ev.TurnPassed):
            self.passing = False
        if isinstance(event, ev.EngineReady):
            self.serving.add(event.engine)


def world(settings: Settings = COLOCATED, seed: int = 0, loss: float = 0.0, engines: int = 2) -> SharedGpus:
    made = SharedGpus(Controller(settings), seed, loss, engines)
    handle = made.controller.handle

    def noted(event: ev.Event) -> list[ev.Command]:
        made.handle_pending(event)
        return handle(event)

    made.controller.handle = noted  # type: ignore[method-assign]
    return made


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.1]), st.integers(1, 3))
@hypothesis_settings(max_examples=100)
def test_whatever_engines_do_the_run_trains_the_same_groups_and_shares_no_memory(seed, loss, engines):
    made = world(COLOCATED, seed, loss, engines)
    made.run()
    assert made.finish == ev.Finish(ok=True, reason="trained 5 steps")
    assert made.trained == [(2 + s, (3 * s, 3 * s + 1, 3 * s + 2)) for s in range(5)]
    assert max(made.lags) == 0
    assert [when for _, when in made.evals] == ["before", "after"]


def test_a_step_takes_three_turns_and_its_checkpoint_none():
    made = world(replace(COLOCATED, evals=(), checkpoint_interval=1))
    made.run()
    first = ["engines", "both", "engines"]  # engines start, and get their first weights
    assert made.turns == first + 4 * ["trainer", "both", "engines"] + ["trainer"]  # it exports, too
    assert [msgspec.msgpack.decode(s, type=SavedState).version for s in made.saved] == [1, 2, 3, 4, 5, 6, 7]


def test_a_stop_takes_the_gpus_from_working_engines_and_saves():
    made = world(replace(COLOCATED, checkpoint_interval=100), seed=5)
    made.run(until=2)
    while not any(made.working.values()):
        made.tick()
    working = sum(map(len, made.working.values()))
    assert working
    made.do(made.controller.handle(ev.StopAsked("preempted")))
    assert made.turns[-1] == "trainer"
    made.run()
    assert made.finish == ev.Finish(ok=False, reason="preempted", stopped=True)
    assert msgspec.msgpack.decode(made.saved[-1], type=SavedState).version == made.controller.version


def test_an_engine_that_crashed_while_the_trainer_works_starts_only_in_the_engines_turn():
    controller = Controller(replace(COLOCATED, offline_steps=0, evals=()))
    assert controller.start() == [ev.PassTurn("engines", "trainer", ())]
    assert controller.handle(ev.EngineWaits(0)) == []
    assert controller.handle(ev.TurnPassed("engines")) == [ev.LetStart(0)]
    assert controller.handle(ev.EngineReady(0)) == [ev.PassTurn("both", "engines", (0,))]
    assert controller.handle(ev.TurnPassed("both")) == [ev.SyncWeights(0, (0,))]
    assert controller.handle(ev.Synced(0, (0,), ())) == [ev.PassTurn("engines", "both", (0,))]
    assert controller.handle(ev.TurnPassed("engines")) == []
    assert controller.handle(ev.PromptsWanted(0, 16)) == [ev.SendPrompts(0, (0, 1, 2), False)]
    for id in range(3):
        commands = controller.handle(ev.GroupAccepted(meta(id, 0)))
    assert commands == [ev.PassTurn("trainer", "engines", (0,))]
    assert controller.handle(ev.EngineLost(0, "its worker is gone")) == []
    assert isinstance(controller.handle(ev.TurnPassed("trainer"))[0], ev.Train)
    assert controller.handle(ev.EngineWaits(0)) == []
    assert controller.handle(ev.Trained(1)) == [ev.PassTurn("engines", "trainer", ())]
    assert controller.handle(ev.TurnPassed("engines")) == [ev.LetStart(0)]


def test_an_engine_that_comes_without_having_asked_is_refused():
    controller = Controller(COLOCATED)
    controller.start()
    assert controller.handle(ev.EngineReady(0)) == [ev.Refuse(0)]
    assert controller.engines == {}


def test_an_engine_that_does_not_give_its_memory_back_is_lost():
    controller = Controller(replace(COLOCATED, offline_steps=0, evals=()))
    controller.start()
    controller.handle(ev.EngineWaits(0))
    controller.handle(ev.TurnPassed("engines"))
    controller.handle(ev.EngineReady(0))
    assert controller.handle(ev.TurnPassed("both", lost=(0,))) == [ev.PassTurn("engines", "both", ())]


def test_an_engine_that_waits_again_before_its_loss_is_told_is_not_forgotten():
    controller = Controller(replace(COLOCATED, offline_steps=0, evals=()))
    controller.start()
    controller.handle(ev.EngineWaits(0))
    controller.handle(ev.TurnPassed("engines"))
    controller.handle(ev.EngineReady(0))  # the turn passes to both, and the engine dies of it
    assert controller.handle(ev.EngineWaits(0)) == []
    assert controller.handle(ev.TurnPassed("both", lost=(0,))) == [ev.PassTurn("engines", "both", ())]
    assert controller.handle(ev.TurnPassed("engines")) == [ev.LetStart(0)]
