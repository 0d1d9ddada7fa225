"""The controller's promises, on simulated worlds: what is trained, when, with how old data, through losses."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from verst.runtime.algorithms.evaluation import Scale
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.early_stop import EarlyStopRule
from verst.runtime.controller.state_machine.evaluations import EvalSet
from verst.runtime.controller.state_machine.loop_state import SavedState, Settings
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.messages.jobs import EvalAnswers
from verst.runtime.messages.sample import GroupMeta

BASE = Settings(
    steps=5,
    prompts_per_step=3,
    samples_per_prompt=4,
    staleness=0,
    in_order=True,
    offline_steps=2,
    checkpoint_interval=2,
    min_engines=1,
    evals=(EvalSet("math", 2),),
)


def answers(reward: float = 0.5) -> EvalAnswers:
    return EvalAnswers(rewards=[reward], tokens=[5], truncated=[False])


def meta(id: int, version: int) -> GroupMeta:
    return GroupMeta(
        id=id,
        shard=0,
        lengths=[5] * 4,
        trained_tokens=[2] * 4,
        rewards=[0.0, 1.0, 0.0, 1.0],
        finish=["stop"] * 4,
        oldest_version=version,
    )


class World:
    """Executes commands as a real shell would, in a random order, with engines that get lost."""

    def __init__(self, controller: Controller, seed: int, loss: float = 0.0, engines: int = 2) -> None:
        self.controller = controller
        self.random = random.Random(seed)
        self.loss = loss
        self.versions = dict.fromkeys(range(engines), -1)
        self.pending: list[ev.Event] = [ev.EngineReady(e) for e in range(engines)]
        self.working: dict[int, list[tuple[int, bool, int]]] = {e: [] for e in range(engines)}
        self.trained: list[tuple[int, tuple[int, ...]]] = []
        self.kept: list[tuple[int, tuple[int, ...]]] = []
        self.lags: list[int] = []
        self.evals: list[tuple[int, str]] = []
        self.sets: list[tuple[int, str]] = []
        self.rewards: dict[int, float] = {}  # of the evaluation of a version, else 0.5
        self.evals_lost: list[int] = []
        self.asked: dict[int, int | None] = {}  # evaluation prompt -> the version that it was last asked for
        self.beside = False  # whether prompts of an evaluation were sent while the trainer trained, or later
        self.saved: list[bytes] = []
        self.discarded: list[int] = []
        self.journal: dict[int, GroupMeta] = {}
        self.finish: ev.Finish | None = None

    def run(self, until: int | None = None, limit: int = 20_000) -> None:
        self.do(self.controller.start())
        for _ in range(limit):
            if self.finish or (until is not None and len(self.trained) >= until):
                return
            self.tick()
        raise AssertionError(f"not finished after {limit} events; the trainer is {self.controller.busy!r}")

    def tick(self) -> None:
        if self.random.random() < self.loss:
            engine = self.random.choice(list(self.working))
            self.working[engine] = []
            self.do(self.controller.handle(ev.EngineLost(engine, "power")))
            self.versions[engine] = -1
            self.pending.append(ev.EngineReady(engine))
        choices = [*range(len(self.pending)), *[-1 - e for e in self.working]]
        choice = self.random.choice(choices)
        if choice >= 0:
            event = self.pending.pop(choice)
            if isinstance(event, ev.EngineReady):  # of a new worker, which knows of no prompts
                self.working[event.engine], self.versions[event.engine] = [], -1
            self.do(self.controller.handle(event))
        else:
            self.do(self.controller.handle(self.engine_event(-1 - choice)))

    def engine_event(self, engine: int) -> ev.Event:
        if not self.working[engine] or self.random.random() < 0.3:
            return ev.PromptsWanted(engine, 16 - 4 * len(self.working[engine]))
        id, evaluation, version = self.working[engine].pop(self.random.randrange(len(self.working[engine])))
        if evaluation:
            assert self.versions[engine] == version == self.asked[id], (
                "answered with other weights than are evaluated"
            )
            return ev.EvalScored(id, answers(self.rewards.get(version, 0.5)), version)
        self.journal.setdefault(id, meta(id, version))
        return ev.GroupAccepted(self.journal[id])

    def do(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.SendPrompts(engine, ids, evaluation, version):
                    self.working[engine] += [(id, evaluation, self.versions[engine]) for id in ids]
                    if evaluation:
                        self.asked |= dict.fromkeys(ids, version)
                        self.beside |= version != self.controller.version or self.controller.busy == "step"
                case ev.TrainOffline(version):
                    self.pending.append(ev.Trained(version + 1))
                case ev.Train(version, groups):
                    self.trained.append((version, tuple(g.id for g in groups)))
                    self.lags += [version - g.oldest_version for g in groups]
                    self.pending.append(ev.Trained(version + 1))
                case ev.KeepGroups(step, groups):
                    self.kept.append((step, tuple(g.id for g in groups)))
                    self.pending.append(ev.Kept())
                case ev.SyncWeights(version, engines):
                    self.versions |= dict.fromkeys(engines, version)
                    self.pending.append(ev.Synced(version, engines, ()))
                case ev.SaveCheckpoint(version):
                    self.saved.append(msgspec.msgpack.encode(self.controller.saved_state()))
                    self.pending += [ev.SaveStarted(version), ev.Saved(version)]
                case ev.Discard(ids):
                    self.discarded += ids
                case ev.Export():
                    self.pending.append(ev.Exported())
                case ev.ReportEval(version, when, name):
                    self.evals.append((version, when))
                    self.sets.append((version, name))
                case ev.EvalEnded(version, lost=True):
                    self.evals_lost.append(version)
                case ev.Finish():
                    self.finish = command


def run(settings: Settings, seed: int = 0, loss: float = 0.0) -> World:
    world = World(Controller(settings), seed, loss)
    world.run()
    return world


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.1]), st.sampled_from([0, 1]))
@hypothesis_settings(max_examples=60)
def test_in_order_modes_train_the_dataset_in_order_whatever_engines_do(seed, loss, staleness):
    world = run(replace(BASE, staleness=staleness), seed, loss)
    assert world.finish == ev.Finish(ok=True, reason="trained 5 steps")
    assert world.trained == [(2 + s, (3 * s, 3 * s + 1, 3 * s + 2)) for s in range(5)]
    assert max(world.lags) <= staleness


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05]))
@hypothesis_settings(max_examples=40)
def test_fully_async_trains_no_group_twice_and_whole_steps(seed, loss):
    world = run(replace(BASE, staleness=2, in_order=False), seed, loss)
    ids = [id for _, groups in world.trained for id in groups]
    assert len(ids) == len(set(ids)) == 15
    assert all(len(groups) == 3 for _, groups in world.trained)


@given(st.integers(0, 10_000), st.integers(1, 4))
@hypothesis_settings(max_examples=40)
def test_a_run_resumed_from_any_checkpoint_goes_on_as_if_nothing_had_happened(seed, killed_after):
    first = World(Controller(replace(BASE, checkpoint_interval=1)), seed)
    first.run(until=killed_after)
    if not first.saved:
        return
    saved = msgspec.msgpack.decode(first.saved[-1], type=SavedState)
    kept = [m for id, m in first.journal.items() if id not in first.discarded]
    second = World(Controller(replace(BASE, checkpoint_interval=1), saved, kept), seed + 1)
    second.journal = {m.id: m for m in kept}
    second.run()
    at = max(0, saved.version - 2)
    assert second.trained == [(2 + s, (3 * s, 3 * s + 1, 3 * s + 2)) for s in range(at, 5)]


def test_evaluates_before_and_after_and_at_intervals():
    assert run(BASE).evals == [(2, "before"), (7, "after")]
    assert run(replace(BASE, evals=(EvalSet("math", 2, interval=2),))).evals == [
        (2, "before"),
        (4, "during"),
        (6, "during"),
        (7, "after"),
    ]


SETS = (EvalSet("math", 5, interval=1), EvalSet("code", 3, interval=2), EvalSet("chat", 2))
# When every set is evaluated in BASE, whose first version of reinforcement learning is 2.
DUE = {2: {"math", "code", "chat"}, 3: {"math"}, 4: {"math", "code"}, 5: {"math"}, 6: {"math", "code"}}
DUE[7] = DUE[2]


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.0, 0.05]),
    st.sampled_from([(0, True), (1, True), (2, False)]),
    st.sampled_from([None, 1, 2]),
)
@hypothesis_settings(max_examples=40)
def test_each_set_is_evaluated_at_its_versions_beside_the_training_and_with_their_weights_alone(
    seed, loss, mode, engines
):
    """Only if the last engine with a version is lost, its evaluation has no result, and the run says so."""
    settings = replace(BASE, staleness=mode[0], in_order=mode[1], evals=SETS, eval_engines=engines)
    world = World(Controller(settings), seed, loss, engines=3)
    world.run()
    assert world.finish == ev.Finish(ok=True, reason="trained 5 steps")
    assert len(world.trained) == 5
    if mode[1]:
        assert world.trained == [(2 + s, (3 * s, 3 * s + 1, 3 * s + 2)) for s in range(5)]
    made: dict[int, list[str]] = {}
    for version, name in world.sets:
        made.setdefault(version, []).append(name)
    for version, names in DUE.items():
        assert len(set(made.get(version, []))) == len(made.get(version, []))
        if version not in world.evals_lost:
            assert set(made[version]) == names
    assert set(world.evals_lost) <= {2, 3, 4, 5, 6}, (
        "the last version is not gone before its evaluation is done"
    )
    assert loss or not world.evals_lost


def test_a_step_is_trained_while_its_version_is_evaluated():
    settings = replace(BASE, evals=(EvalSet("math", 40, interval=1),))
    worlds = [World(Controller(settings), seed) for seed in range(5)]
    for world in worlds:
        world.run()
    assert all(world.beside for world in worlds)


def test_engines_that_evaluate_keep_their_weights_and_the_others_get_the_next():
    settings = replace(BASE, offline_steps=0, evals=(EvalSet("math", 1),), eval_engines=1)
    controller = Controller(settings)
    for engine in (0, 1):
        controller.handle(ev.EngineReady(engine))
    controller.handle(ev.Synced(0, (0,), ()))
    controller.handle(ev.Synced(0, (1,), ()))
    assert controller.handle(ev.PromptsWanted(1, 64)) == [ev.SendPrompts(1, (0, 1, 2), False)]
    assert controller.handle(ev.PromptsWanted(0, 64)) == [ev.SendPrompts(0, (0,), True, 0)]
    for id in range(3):
        commands = controller.handle(ev.GroupAccepted(meta(id, 0)))
    assert [type(c) for c in commands] == [ev.Train]
    assert controller.handle(ev.Trained(1)) == [ev.SyncWeights(1, (1,))]
    controller.handle(ev.Synced(1, (1,), ()))
    report, ended, sync = controller.handle(ev.EvalScored(0, answers(), 0))
    assert (report.version, report.set, report.figures["reward"]) == (0, "math", 0.5)
    assert ended == ev.EvalEnded(0, "before")
    assert sync == ev.SyncWeights(1, (0,))


def test_an_evaluation_ends_without_a_result_when_its_weights_are_gone():
    settings = replace(BASE, offline_steps=0, evals=(EvalSet("math", 1),), eval_engines=1)
    controller = Controller(settings)
    for engine in (0, 1):
        controller.handle(ev.EngineReady(engine))
    controller.handle(ev.Synced(0, (0,), ()))
    controller.handle(ev.Synced(0, (1,), ()))
    controller.handle(ev.PromptsWanted(1, 64))
    for id in range(3):
        controller.handle(ev.GroupAccepted(meta(id, 0)))
    assert controller.handle(ev.EngineLost(0, "power")) == [], "engine 1 has them, too"
    assert controller.fleet.held == {1}
    assert controller.handle(ev.EngineLost(1, "power")) == [], "the trainer still has them"
    assert controller.handle(ev.Trained(1)) == [ev.EvalEnded(0, "before", lost=True)]
    assert controller.evals.done == {0: {"math"}}


def test_a_resumed_run_tells_of_the_evaluation_that_it_lost_and_repeats_one_that_it_can():
    for evaluating, lost in ((1, [ev.EvalEnded(1, "during", lost=True)]), (2, []), (None, [])):
        done = {0: ["math"]}
        saved = SavedState(
            version=2, trained_below=6, trained_above=[], evaluated=done, evaluating=evaluating
        )
        settings = replace(BASE, offline_steps=0, evals=(EvalSet("math", 1, interval=1),))
        controller = Controller(settings, saved)
        assert controller.start() == lost
        assert controller.evals.due(2)


def early(patience: int, rewards: dict[int, float], saved: SavedState | None = None, seed: int = 1) -> World:
    """A run of ten steps with an evaluation after each, whose mean reward is that of its version."""
    rule = EarlyStopRule("math", "reward", patience)
    settings = replace(
        BASE, steps=10, offline_steps=0, checkpoint_interval=1, early_stop=rule,
        evals=(EvalSet("math", 2, interval=1), EvalSet("code", 1)),
    )  # fmt: skip
    world = World(Controller(settings, saved), seed=seed)
    world.rewards = rewards
    world.run()
    return world


@pytest.mark.parametrize("seed", range(1, 9))
def test_stops_early_once_the_evaluations_are_no_better_and_evaluates_the_last_version(seed: int):
    rewards = {0: 0.1, 1: 0.4, 2: 0.4, 3: 0.3} | dict.fromkeys(range(4, 11), 0.0)
    world = early(2, rewards, seed=seed)
    last = world.controller.version
    assert last in (3, 4), "the step that was under way is the last"
    assert world.finish == ev.Finish(
        ok=True,
        reason=f"trained {last} steps of 10: math/reward was best at step 1 (0.4), and 2 evaluations since then were "
        "not better by more than 0 (algorithm.early_stop)",
    )
    assert (last, "code") in world.sets
    assert early(2, {v: v / 10 for v in range(11)}).finish == ev.Finish(ok=True, reason="trained 10 steps")


def test_a_resumed_run_goes_on_counting_and_counts_no_evaluation_twice():
    rewards = {0: 0.1, 1: 0.4, 2: 0.4, 3: 0.3} | dict.fromkeys(range(4, 11), 0.0)
    first = early(2, rewards)
    states = [msgspec.msgpack.decode(saved, type=SavedState) for saved in first.saved]
    for saved in states:
        again = early(2, rewards, saved)
        assert again.finish.ok
        assert again.controller.version in (3, 4)
        assert again.controller.early_stop.state.version == 1


def test_discards_only_what_a_complete_checkpoint_covers():
    world = run(BASE)
    assert sorted(world.discarded) == list(range(15))
    world = World(Controller(replace(BASE, checkpoint_interval=100)), seed=1)
    world.run(until=4)
    assert world.discarded == []


def test_a_stop_waits_for_the_step_and_saves():
    world = World(Controller(BASE), seed=3)
    world.run(until=2)
    world.do(world.controller.handle(ev.StopAsked("preempted")))
    assert world.finish is None
    world.run()
    assert world.finish == ev.Finish(ok=False, reason="preempted", stopped=True)
    assert msgspec.msgpack.decode(world.saved[-1], type=SavedState).version == world.controller.version


def test_a_dropped_group_is_replaced_by_the_next_prompt():
    controller = Controller(replace(BASE, offline_steps=0, evals=()))
    world = World(controller, seed=0, engines=1)
    world.do(controller.start())
    world.do(controller.handle(ev.EngineReady(0)))
    world.pending.clear()
    world.versions[0] = 0
    world.do(controller.handle(ev.Synced(0, (0,), ())))
    world.do(controller.handle(ev.PromptsWanted(0, 16)))
    assert [id for id, _, _ in world.working[0]] == [0, 1, 2]
    world.do(controller.handle(ev.GroupDropped(1)))
    world.do(controller.handle(ev.PromptsWanted(0, 16)))
    assert [id for id, _, _ in world.working[0]] == [0, 1, 2, 3]
    for id in (0, 2, 3):
        world.do(controller.handle(ev.GroupAccepted(meta(id, 0))))
    assert world.trained == [(0, (0, 2, 3))]


def test_a_group_that_keeps_failing_ends_the_run_with_its_reason():
    controller = Controller(replace(BASE, offline_steps=0, evals=()))
    controller.handle(ev.EngineReady(0))
    controller.handle(ev.Synced(0, (0,), ()))
    for _ in range(2):
        controller.handle(ev.PromptsWanted(0, 4))
        assert controller.handle(ev.GroupFailed(0, False, "HTTP 500", fatal=False)) == []
    assert controller.handle(ev.GroupFailed(0, False, "HTTP 500", fatal=False)) == [
        ev.Finish(False, "prompt group 0 failed 3 times, last: HTTP 500")
    ]


def test_a_reward_that_raises_ends_the_run_at_once():
    controller = Controller(replace(BASE, offline_steps=0))
    assert controller.handle(ev.GroupFailed(7, False, "reward `m:f` returned nan", fatal=True)) == [
        ev.Finish(False, "prompt group 7: reward `m:f` returned nan", hopeless=True)
    ]


@pytest.mark.parametrize("needed", [1, 2])
def test_training_waits_for_min_engines(needed):
    controller = Controller(replace(BASE, offline_steps=0, min_engines=needed))
    commands = controller.handle(ev.EngineReady(0))
    assert bool(commands) == (needed == 1)
    if needed == 2:
        assert controller.handle(ev.EngineReady(1)) == [ev.SyncWeights(0, (0, 1))]


def test_a_prompt_with_more_samples_than_an_engine_takes_goes_to_an_idle_one():
    """In training and in evaluation; the worker then generates as many at a time as it may."""
    settings = replace(
        BASE,
        staleness=1,
        offline_steps=0,
        samples_per_prompt=128,
        concurrency=64,
        min_engines=2,
        evals=(EvalSet("math", 2, scale=Scale(samples=100)),),
    )
    controller = Controller(settings)
    for engine in (0, 1):
        controller.handle(ev.EngineReady(engine))
    controller.handle(ev.Synced(0, (0, 1), ()))
    assert controller.handle(ev.PromptsWanted(0, 63)) == [], "it is busy"
    assert controller.handle(ev.PromptsWanted(0, 64)) == [ev.SendPrompts(0, (0,), True, 0)]
    assert controller.handle(ev.PromptsWanted(1, 64)) == [ev.SendPrompts(1, (1,), True, 0)]
    for id in (0, 1):
        controller.handle(ev.EvalScored(id, answers(), 0))
    assert controller.handle(ev.PromptsWanted(0, 63)) == []
    assert controller.handle(ev.PromptsWanted(0, 64)) == [ev.SendPrompts(0, (0,), False)]
    assert controller.handle(ev.PromptsWanted(1, 64)) == [ev.SendPrompts(1, (1,), False)]


def test_an_answer_that_comes_after_its_evaluation_is_not_part_of_the_next():
    """Engine 0 is taken for lost with an evaluation prompt, which engine 1 then answers; its own answer comes late."""
    settings = replace(BASE, staleness=1, offline_steps=0, evals=(EvalSet("math", 2, interval=1),))
    controller = Controller(settings)
    for engine in (0, 1):
        controller.handle(ev.EngineReady(engine))
    controller.handle(ev.Synced(0, (0,), ()))
    controller.handle(ev.Synced(0, (1,), ()))
    assert controller.handle(ev.PromptsWanted(0, 64)) == [ev.SendPrompts(0, (0, 1), True, 0)]
    controller.handle(ev.EngineLost(0, "silent"))
    controller.handle(ev.PromptsWanted(1, 64))
    done = [controller.handle(ev.EvalScored(id, answers(0.25), 0)) for id in range(2)]
    assert done[-1][0].figures["reward"] == 0.25
    controller.evals.begin(1)
    taken, _ = controller.evals.take(1)
    for late in (
        ev.EvalScored(taken[0], answers(1.0), 0),
        ev.GroupFailed(taken[0], True, "gone", fatal=False, version=0),
    ):
        assert controller.handle(late) == []
    assert controller.evals.progress == (0, 2)
    assert controller.evals.waiting == 1


def test_a_run_that_generates_nothing_trains_saves_and_ends_without_an_engine():
    controller = Controller(
        replace(BASE, steps=0, offline_steps=5, min_engines=0, evals=(), checkpoint_interval=2)
    )
    world = World(controller, seed=0, engines=0)
    world.run()
    assert world.finish == ev.Finish(True, "trained 5 steps")
    saved = [msgspec.msgpack.decode(s, type=SavedState) for s in world.saved]
    assert [state.version for state in saved] == [2, 4, 5]
    assert controller.engines_missing() == 0
    again = World(Controller(controller.settings, saved[1]), seed=0, engines=0)
    again.run()
    assert again.finish == world.finish, "a resumed run goes on where it was saved"
    assert len(again.saved) == 1


def test_a_recording_is_trained_step_by_step_without_an_engine_or_an_evaluation():
    recorded = {step: (meta(10 * step, step - 1), meta(10 * step + 1, step - 1)) for step in range(3, 8)}
    settings = replace(BASE, min_engines=0, evals=())
    world = World(Controller(settings, None, (), recorded), seed=1, engines=0)
    world.run()
    assert world.finish is not None
    assert world.finish.ok
    assert world.trained == [(step - 1, (10 * step, 10 * step + 1)) for step in range(3, 8)]
    assert world.lags == [] or max(world.lags) == 0


def test_a_replay_of_one_step_ends_after_it_without_a_checkpoint_or_an_export():
    recorded = {step: (meta(step, step - 1),) for step in range(3, 8)}
    saved = SavedState(version=4, trained_below=0, trained_above=[], evaluated=[])
    settings = replace(BASE, min_engines=0, evals=(), last_recorded=5)
    controller = Controller(settings, saved, (), recorded)
    (train,) = controller.start()
    assert train == ev.Train(4, recorded[5])
    (finish,) = controller.handle(ev.Trained(5))
    assert isinstance(finish, ev.Finish)
    assert finish.ok


@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_only_generates_keeps_each_steps_groups_and_never_changes_the_weights(seed):
    settings = replace(BASE, offline_steps=0, evals=(), generate_only=True)
    world = World(Controller(settings), seed=seed, loss=0.02)
    world.run()
    assert world.finish is not None
    assert (world.finish.ok, world.finish.reason) == (True, "generated the groups of 5 steps")
    assert world.kept == [(step, tuple(range(3 * step - 3, 3 * step))) for step in range(1, 6)]
    assert (world.trained, world.saved, world.controller.version) == ([], [], 0)


def test_a_run_that_only_generates_writes_no_checkpoint_of_the_steps_before_either():
    settings = replace(BASE, offline_steps=3, evals=(), generate_only=True, checkpoint_interval=1)
    world = World(Controller(settings), seed=1)
    world.run()
    assert world.finish is not None
    assert world.finish.ok
    assert (world.saved, world.controller.version) == ([], 3)


def test_a_run_that_only_generates_ends_without_a_checkpoint_when_it_is_asked_to():
    settings = replace(BASE, offline_steps=0, evals=(), generate_only=True)
    controller = Controller(settings)
    controller.start()
    (finish,) = controller.handle(ev.StopAsked("enough"))
    assert isinstance(finish, ev.Finish)
    assert finish.stopped
