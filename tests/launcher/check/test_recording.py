"""A recording that a run cannot train on is refused when the run is planned, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.launcher.recipes_for_tests import MACHINE, write_recipe
from tests.runtime.sample_factory import make_group
from verst.launcher.check.recording import recording_faults
from verst.launcher.recipe.load import load_recipe
from verst.launcher.runs.prepare import prepare_run
from verst.launcher.runs.recording import makes_the_same_weights
from verst.runtime.run.folder import RunFolder
from verst.runtime.store.journal import Journal
from verst.runtime.store.recording import StepList


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
    ],
)
def test_the_weights_are_the_same_only_if_nothing_that_decides_them_changed(recorded, override, same):
    recipe = load_recipe(recorded.recipe, [f"record.source={recorded.root}", override])
    assert makes_the_same_weights(recipe, recorded) is same
