"""No group is trained on that is too old or unfit, and no prompt is lost: each is trained, or dropped and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.runtime.controller.state_machine.test_machine import BASE, World, answers, meta
from verst.runtime.controller.state_machine import events as ev
from verst.runtime.controller.state_machine.drops import Drop, Drops
from verst.runtime.controller.state_machine.loop_state import SavedState, Settings
from verst.runtime.controller.state_machine.machine import Controller
from verst.runtime.messages.group_ids import group_id, prompt_of, reissue_of
from verst.runtime.messages.sample import GroupMeta

ASYNC = replace(BASE, steps=8, staleness=2, in_order=False, offline_steps=0, max_sample_tokens=8)


def fate(prompt: int) -> str:
    """What the worlds below do with a prompt: most are ordinary."""
    return {1: "filter", 4: "masked", 7: "too_long", 10: "slow"}.get(prompt % 13, "")


class Rough(World):
    """A world in which engines are of different speeds, and some prompts always make trouble (`fate`)."""

    def __init__(self, controller: Controller, seed: int, loss: float = 0.0, engines: int = 3) -> None:
        super().__init__(controller, seed, loss, engines)
        self.issued: list[int] = []
        self.drops: list[ev.ReportDropped] = []
        self.takes: list[tuple[int, tuple[GroupMeta, ...]]] = []

    def engine_event(self, engine: int) -> ev.Event:
        work = self.working[engine]
        # A busy engine answers seldom, so that versions pass while its groups are in flight.
        if not work or self.random.random() < 0.3 + 0.2 * engine:
            return ev.PromptsWanted(engine, 16 - 4 * len(work))
        place = self.random.randrange(len(work))
        id, evaluation, version = work[place]
        kind = "" if evaluation else fate(prompt_of(id))
        young = self.controller.version - version <= self.controller.settings.staleness
        if kind == "slow" and young and self.random.random() < 0.98:
            return ev.PromptsWanted(engine, 16 - 4 * len(work))
        work.pop(place)
        if evaluation:
            return ev.EvalScored(id, answers(), version)
        if kind == "filter":
            return ev.GroupDropped(id)
        made = meta(id, version)
        if kind == "masked":
            made = msgspec.structs.replace(made, trained_tokens=[0] * 4)
        if kind == "too_long":
            made = msgspec.structs.replace(made, lengths=[5, 9, 5, 5])
        self.journal.setdefault(id, made)
        return ev.GroupAccepted(self.journal[id])

    def do(self, commands: list[ev.Command]) -> None:
        for command in commands:
            match command:
                case ev.SendPrompts(_, ids, False):
                    self.issued += ids
                case ev.ReportDropped():
                    self.drops.append(command)
                case ev.Train(version, groups):
                    self.takes.append((version, groups))
        super().do(commands)

    def check(self, settings: Settings) -> None:
        """Every promise about what this world trained and dropped."""
        for version, groups in self.takes:
            assert len(groups) == settings.prompts_per_step
            assert max(version - group.oldest_version for group in groups) <= settings.staleness
            assert all(fate(prompt_of(group.id)) in ("", "slow") for group in groups)
        trained = [prompt_of(group.id) for _, groups in self.takes for group in groups]
        assert len(trained) == len(set(trained)), "no prompt is trained twice"
        gone = [prompt_of(drop.id) for drop in self.drops if not drop.reissued]
        assert len(gone) == len(set(gone)), "no prompt is dropped for good twice"
        assert not set(gone) & set(trained)
        assert {drop.reason for drop in self.drops} <= {"filter", "masked", "too_long", "stale"}
        assert all(drop.reason == "stale" for drop in self.drops if drop.reissued)
        for prompt, issues in Counter(map(prompt_of, set(self.issued))).items():
            assert issues <= 3, f"prompt {prompt} was issued as {issues} groups"


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.05]), st.integers(1, 4))
@hypothesis_settings(max_examples=60)
def test_no_group_is_older_than_the_bound_and_every_prompt_is_accounted_for(seed, loss, staleness):
    settings = replace(ASYNC, staleness=staleness)
    world = Rough(Controller(settings), seed, loss)
    world.run()
    world.check(settings)
    assert world.finish == ev.Finish(ok=True, reason="trained 8 steps")
    settled = {prompt_of(g.id) for _, groups in world.takes for g in groups}
    settled |= {prompt_of(drop.id) for drop in world.drops if not drop.reissued}
    left = world.controller.groups
    assert {prompt_of(id) for id in world.issued} == settled | left._outstanding
    assert not settled & left._outstanding


@given(st.integers(0, 10_000), st.sampled_from([0, 1]), st.sampled_from([0.0, 0.05]))
@hypothesis_settings(max_examples=40)
def test_the_modes_in_order_keep_the_bound_and_the_order_too(seed, staleness, loss):
    settings = replace(ASYNC, staleness=staleness, in_order=True)
    world = Rough(Controller(settings), seed, loss)
    world.run()
    world.check(settings)
    trained = [prompt_of(group.id) for _, groups in world.takes for group in groups]
    assert trained == sorted(trained)


@given(st.integers(0, 10_000), st.integers(1, 7), st.booleans(), st.integers(0, 2))
@hypothesis_settings(max_examples=60)
def test_a_resumed_run_keeps_the_bound_whatever_the_store_holds(seed, killed_after, in_order, staleness):
    """Also when the resumed run allows less staleness than the one that made the groups."""
    before = replace(ASYNC, staleness=3 if not in_order else 1, in_order=in_order, checkpoint_interval=2)
    first = Rough(Controller(before), seed)
    first.run(until=killed_after)
    if not first.saved:
        return
    saved = msgspec.msgpack.decode(first.saved[-1], type=SavedState)
    kept = [m for id, m in first.journal.items() if id not in first.discarded]
    after = replace(before, staleness=staleness, steps=10)
    second = Rough(Controller(after, saved, kept), seed + 1)
    second.journal = {m.id: m for m in kept}
    second.run()
    second.check(after)
    covered = {prompt_of(g.id) for version, groups in first.takes if version < saved.version for g in groups}
    assert not covered & {prompt_of(g.id) for _, groups in second.takes for g in groups}
    assert [version for version, _ in second.takes] == list(range(saved.version, 10))


def serving(settings: Settings, version: int = 0, journalled: tuple[GroupMeta, ...] = ()) -> Controller:
    """A controller at `version` with one engine that has its weights."""
    saved = SavedState(version=version, trained_below=0, trained_above=[], evaluated={})
    controller = Controller(replace(settings, evals=()), saved, journalled)
    controller.start()
    controller.handle(ev.EngineReady(0))
    controller.handle(ev.Synced(version, (0,), ()))
    return controller


def test_a_prompt_that_is_always_too_slow_is_given_up_after_three_groups():
    controller = serving(ASYNC, version=4)
    for issue in range(3):
        [sent] = controller.handle(ev.PromptsWanted(0, 4))
        assert sent == ev.SendPrompts(0, (group_id(0, issue),), False)
        [told] = controller.handle(ev.GroupAccepted(meta(sent.ids[0], version=1)))
        assert (told.id, told.reason, told.reissued) == (sent.ids[0], "stale", issue < 2)
        assert told.detail.startswith(
            "its oldest token is of version 1, 3 behind; at most 2 may be (algorithm.max_staleness)"
        )
    assert told.detail.endswith("; its prompt was issued 3 times")
    assert controller.handle(ev.PromptsWanted(0, 4)) == [ev.SendPrompts(0, (1,), False)]


def test_what_is_reissued_survives_a_resume_and_its_late_groups_are_ignored():
    controller = serving(ASYNC, version=4)
    controller.handle(ev.PromptsWanted(0, 4))
    controller.handle(ev.GroupAccepted(meta(0, version=1)))
    saved = controller.saved_state()
    assert saved.reissues == {0: 1}
    assert (prompt_of(group_id(0, 1)), reissue_of(group_id(0, 1))) == (0, 1)
    resumed = Controller(replace(ASYNC, evals=()), saved, [meta(0, version=1)])
    assert resumed.start() == []
    assert resumed.groups.accepted == 0
    resumed.handle(ev.EngineReady(0))
    resumed.handle(ev.Synced(4, (0,), ()))
    assert resumed.handle(ev.PromptsWanted(0, 4)) == [ev.SendPrompts(0, (group_id(0, 1),), False)]
    assert resumed.handle(ev.GroupAccepted(meta(0, version=4))) == [], "of the first issue: late"
    assert resumed.groups.accepted == 0
    resumed.handle(ev.GroupAccepted(meta(group_id(0, 1), version=4)))
    assert resumed.groups.accepted == 1


def test_groups_that_were_kept_grow_too_old_while_others_are_trained():
    """An outage: groups that the engines made before it are used up to the bound and no further."""
    controller = serving(replace(ASYNC, staleness=1, prompts_per_step=2))
    controller.handle(ev.PromptsWanted(0, 16))
    for id in (0, 1, 2):
        commands = controller.handle(ev.GroupAccepted(meta(id, version=0)))
    assert commands == []
    assert controller.busy == "step"
    controller.handle(ev.Trained(1))
    assert controller.groups.accepted == 1
    controller.handle(ev.Synced(1, (0,), ()))
    controller.handle(ev.PromptsWanted(0, 16))
    [train] = controller.handle(ev.GroupAccepted(meta(3, version=1)))[-1:]
    assert [g.id for g in train.groups] == [2, 3], "the oldest first"


def test_unfit_groups_of_an_earlier_life_are_dropped_at_the_start():
    masked = msgspec.structs.replace(meta(0, 0), trained_tokens=[0] * 4)
    too_long = msgspec.structs.replace(meta(1, 0), lengths=[5, 9, 5, 5])
    saved = SavedState(version=5, trained_below=0, trained_above=[], evaluated={})
    for in_order in (False, True):
        settings = replace(ASYNC, evals=(), in_order=in_order)
        controller = Controller(settings, saved, [masked, too_long, meta(2, 2), meta(3, 3)])
        told = {(c.id, c.reason, c.reissued) for c in controller.start()}
        assert told == {(0, "masked", False), (1, "too_long", False), (2, "stale", True)}
        assert controller.groups.accepted == 1
        controller.handle(ev.EngineReady(0))
        controller.handle(ev.Synced(5, (0,), ()))
        [sent] = controller.handle(ev.PromptsWanted(0, 16))
        assert sent.ids[:2] == (group_id(2, 1), 4)


def resumed_from(
    saved: SavedState, journalled: list[GroupMeta], settings: Settings = ASYNC
) -> tuple[Controller, list[ev.Command]]:
    """A life with three groups in a step and one engine, and what it does as soon as the engine has the weights."""
    changed = replace(settings, evals=(), prompts_per_step=3, steps=20)
    controller = Controller(changed, saved, journalled)
    controller.start()
    controller.handle(ev.EngineReady(0))
    return controller, controller.handle(ev.Synced(saved.version, (0,), ()))


def test_groups_of_an_earlier_life_are_marked_with_the_last_version_in_common():
    """The versions after the checkpoint are made anew: by the same number they are other weights."""
    ten = SavedState(version=10, trained_below=0, trained_above=[], evaluated={})
    controller, _ = resumed_from(ten, [meta(0, 10), meta(1, 12)])
    controller.handle(ev.PromptsWanted(0, 4))
    [train] = controller.handle(ev.GroupAccepted(meta(2, 10)))
    assert [(g.id, g.common_version) for g in train.groups] == [(0, 10), (2, None), (1, 10)]


def test_the_mark_outlives_a_checkpoint_of_a_later_life():
    ten = SavedState(version=10, trained_below=0, trained_above=[], evaluated={})
    controller, _ = resumed_from(ten, [meta(0, 12)])
    controller.handle(ev.PromptsWanted(0, 4))
    controller.handle(ev.GroupAccepted(meta(1, 10)))
    saved = controller.saved_state()
    assert saved.common_versions == {0: 10}
    twelve = msgspec.structs.replace(saved, version=12)
    _, [train] = resumed_from(twelve, [meta(0, 12), meta(1, 12), meta(2, 13)])
    assert {g.id: g.common_version for g in train.groups} == {0: 10, 1: 12, 2: 12}


def test_without_staleness_versions_are_made_again_and_nothing_is_marked():
    ten = SavedState(version=10, trained_below=0, trained_above=[], evaluated={})
    settings = replace(ASYNC, staleness=0, in_order=True)
    controller, [train] = resumed_from(ten, [meta(0, 10), meta(1, 11), meta(2, 12)], settings)
    assert [g.common_version for g in train.groups] == [None] * 3
    assert controller.saved_state().common_versions == {}


def test_dropped_groups_are_discarded_once_a_checkpoint_covers_them():
    controller = serving(replace(ASYNC, prompts_per_step=1, checkpoint_interval=1))
    controller.handle(ev.PromptsWanted(0, 16))
    controller.handle(ev.GroupAccepted(msgspec.structs.replace(meta(0, 0), trained_tokens=[0] * 4)))
    controller.handle(ev.GroupAccepted(meta(1, 0)))
    controller.handle(ev.Trained(1))
    controller.handle(ev.Synced(1, (0,), ()))
    assert ev.Discard((0, 1)) in controller.handle(ev.Saved(1))


def drop_until_the_end(settings: Settings, dropped: int) -> list[ev.Command]:
    """Every group is dropped by the filter, one after another. Returns the commands."""
    controller = serving(settings)
    commands: list[ev.Command] = []
    for _ in range(dropped):
        controller.handle(ev.PromptsWanted(0, 4))
        commands += controller.handle(ev.GroupDropped(controller.groups._next))
        if controller.finished:
            break
    return commands


def test_a_filter_that_drops_everything_ends_the_run_with_its_name():
    commands = drop_until_the_end(replace(ASYNC, max_dropped_in_a_row=20, filter="my:picky"), 100)
    assert [c.id for c in commands if isinstance(c, ev.ReportDropped)] == list(range(21))
    warnings = [c.message for c in commands if isinstance(c, ev.WarnDropped)]
    assert warnings == [
        f"{n} prompt groups in a row were dropped (filter {n}); the run ends after 20 (rollout.max_dropped_in_a_row); "
        "the filter is my:picky"
        for n in (2, 10)
    ]
    assert commands[-1] == ev.Finish(
        ok=False,
        reason="21 prompt groups in a row were dropped (filter 21), more than 20 (rollout.max_dropped_in_a_row); "
        "the filter is my:picky",
        stopped=True,
        hopeless=True,
    )


@pytest.mark.parametrize("kept_every", [19, 20])
def test_a_filter_that_keeps_a_few_groups_ends_no_run(kept_every):
    controller = serving(replace(ASYNC, max_dropped_in_a_row=20, steps=100, prompts_per_step=1000))
    for id in range(10 * kept_every):
        controller.handle(ev.PromptsWanted(0, 4))
        keep = id % kept_every == kept_every - 1
        controller.handle(ev.GroupAccepted(meta(id, 0)) if keep else ev.GroupDropped(id))
    assert not controller.finished
    assert controller.groups.accepted == 10


def test_the_filter_is_named_whatever_reasons_it_gives():
    drops = Drops(limit=2, filter="my_hooks:mixed")
    for reason in ("too_easy", "stale", "too_easy"):
        drops.add(Drop(0, reason))
    assert drops.too_many() == (
        "3 prompt groups in a row were dropped (too_easy 2, stale 1), more than 2 (rollout.max_dropped_in_a_row); the "
        "filter is my_hooks:mixed"
    )
