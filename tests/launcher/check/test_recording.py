"""A recording that a run cannot train on is refused when the run is planned, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.launcher.recipes_for_tests import LLAMA, MACHINE, write_recipe
from tests.runtime.sample_factory import make_group
from verst.launcher.check.model.arguments import parsers_for
from verst.launcher.check.placement import placement_faults
from verst.launcher.check.recording import recording_faults
from verst.launcher.check.step import step_faults
from verst.launcher.plan.machine import Machine
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.prepare import prepare_run, with_absolute_paths
from verst.launcher.runs.recording import note_recording
from verst.runtime.controller.recorded import read_note
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.journal import Journal
from verst.runtime.store.recording import StepList

STAGE = "steps: 2, data: {path: train.jsonl}"


@pytest.fixture
def recorded(tmp_path, monkeypatch) -> RunFolder:
    """A run of three steps that kept its groups."""
    monkeypatch.chdir(tmp_path)
    folder, _ = prepare_run(load_recipe(write_recipe(tmp_path), ["name=recorded"]), MACHINE)
    journal = Journal(folder.samples / "shard-0", 0, keep=True)
    steps = StepList(folder.samples)
    for step in (1, 2, 3):
        group = make_group(step)
        journal.append(group)
        steps.begins(step, [group.meta(0)])
    journal.close()
    return folder


def faults(recorded: RunFolder, *overrides: str, machine=MACHINE) -> list[str]:
    recipe = load_recipe(Path("recipe.yaml"), [f"record.source={recorded.root}", *overrides])
    return [fault.message for fault in recording_faults(recipe, machine) if fault.place == "record.source"]


def test_a_whole_recording_is_taken(recorded):
    assert faults(recorded) == []
    assert faults(recorded, "algorithm.steps=2") == []


def test_what_does_not_fit_is_told(recorded, tmp_path):
    (found,) = faults(recorded, "algorithm.steps=4")
    assert "it has the steps 1 to 3, and this run needs 1 to 4; step 4 is missing" in found
    (found,) = faults(recorded, "record.last_step=9")
    assert "step 9 is missing" in found
    (found,) = faults(
        recorded, "algorithm.stages=[{kind: sft, data: {path: train.jsonl}, steps: 2}, {kind: policy}]"
    )
    assert "came after 0 steps of other stages, and here there are 2" in found
    (found,) = faults(recorded, machine=None)
    assert "runs on this machine alone" in found
    (found,) = faults(RunFolder(tmp_path / "nowhere"))
    assert "that is no run folder" in found


def test_journals_that_are_gone_are_told(recorded):
    for journal in recorded.samples.rglob("*.journal"):
        journal.unlink()
    (found,) = faults(recorded)
    assert "hold no group" in found


def test_the_best_checkpoints_cannot_be_kept_without_an_evaluation(recorded):
    held_out = "data.eval={path: train.jsonl, interval: 2}"
    recipe = load_recipe(
        Path("recipe.yaml"), [f"record.source={recorded.root}", held_out, "checkpoint.keep_best=1"]
    )
    assert [fault.place for fault in recording_faults(recipe, MACHINE)] == ["checkpoint.keep_best"]


def test_another_model_is_told(recorded):
    note = recorded.root / "model.json"
    began = json.loads(note.read_text())
    note.write_text(json.dumps(began | {"config": "0" * 32}))
    (found,) = faults(recorded)
    assert "it began with another model" in found


def test_samples_without_routing_cannot_be_replayed(recorded):
    bare = make_group(1)
    bare = msgspec.structs.replace(
        bare, samples=[msgspec.structs.replace(sample, routing=None) for sample in bare.samples]
    )
    for journal in recorded.samples.rglob("*.journal"):
        journal.unlink()
    Journal(recorded.samples / "shard-0", 1, keep=True).append(bare)
    (found,) = faults(recorded, "algorithm.routing_replay=rollout")
    assert "its samples have no routing" in found
    assert faults(recorded) == []


def test_keep_and_last_step_have_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    for overrides, message in (
        (["record.keep=true", "record.source=a"], "keep has no effect with source"),
        (["record.last_step=3"], "last_step has no effect without source"),
    ):
        with pytest.raises(Exception, match=message):
            load_recipe(Path("recipe.yaml"), overrides)


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("rollout.engines=4", True),
        ("rollout.sampling.temperature=0.7", True),
        ("checkpoint.interval=7", True),
        ("algorithm.mode=one_step_off", True),
        ("trainer.megatron.lr=2e-4", False),
        ("algorithm.clip_high=0.3", False),
        ("algorithm.loss_average=sample", False),
        ("rollout.sampling.max_new_tokens=16", False),
        ("algorithm.seed=7", False),
        ("data.train.sources={math: {path: train.jsonl, loss_weight: 2}}", False),
        ("data.train.sources={math: {path: train.jsonl, max_new_tokens: 4}}", False),
        ("data.train.sources={math: {path: train.jsonl, temperature: 0.7}}", True),
        (f"algorithm.stages=[{{kind: sft, {STAGE}}}, {{kind: policy}}]", True),
        (f"algorithm.stages=[{{kind: sft, {STAGE}, eval: {{path: other.jsonl}}}}, {{kind: policy}}]", True),
        (f"algorithm.stages=[{{kind: sft, {STAGE}, lr: 1e-3}}, {{kind: policy}}]", False),
        (f"algorithm.stages=[{{kind: sft, {STAGE.replace('train', 'other')}}}, {{kind: policy}}]", False),
    ],
)
def test_the_weights_are_the_same_only_if_nothing_that_decides_them_changed(recorded, override, same):
    begun = []
    if "sources" in override:
        begun = ["data.train.path=null", "data.train.sources={math: {path: train.jsonl}}"]
    elif "stages" in override:
        begun = [f"algorithm.stages=[{{kind: sft, {STAGE}}}, {{kind: policy}}]"]
    for written in (recorded.recipe, recorded.recipes / "life-0.yaml"):
        with_absolute_paths(load_recipe(written, begun)).write(written)
    recipe = load_recipe(recorded.recipe, [f"record.source={recorded.root}", override])
    again = RunFolder(recorded.root.with_name("again"))
    again.create()
    note_recording(again, recipe)
    assert read_note(again) is same


def test_other_sources_than_the_recordings_are_told(recorded):
    """The trainer looks up how much a group's source counts."""
    sources = ["data.train.path=null", "data.train.sources={math: {path: train.jsonl}}"]
    (found,) = faults(recorded, *sources)
    assert "its groups are of other sources (a single file) than data.train has here" in found
    load_recipe(recorded.recipe, sources).write(recorded.recipe)
    assert faults(recorded, *sources) == []
    (found,) = faults(recorded)
    assert "of other sources (math)" in found


def test_no_engine_is_checked_where_none_starts(recorded):
    engines = [
        "rollout.sglang={tp-size: 2}",
        "rollout.sampling.max_new_tokens=900",
        "trainer.ranks_per_node=2",
    ]
    of_recording = load_recipe(Path("recipe.yaml"), [f"record.source={recorded.root}", *engines])
    with_engines = load_recipe(Path("recipe.yaml"), engines)
    assert parsers_for(with_engines) == ["megatron", "sglang"]
    assert parsers_for(of_recording) == ["megatron"]
    gpu = Machine(cores=2, gpus=("0",))
    places = [{f.place for f in placement_faults(recipe, gpu)} for recipe in (with_engines, of_recording)]
    assert "model.dtype" in places[0] - places[1]
    (told,) = [f.message for f in placement_faults(of_recording, gpu) if f.place == "trainer.ranks_per_node"]
    assert "the run needs 2 GPUs (2 for trainer ranks), but this machine has 1" in told
    assert "rollout.sampling.max_new_tokens" in {f.place for f in step_faults(with_engines, LLAMA)}
    assert "rollout.sampling.max_new_tokens" not in {f.place for f in step_faults(of_recording, LLAMA)}
